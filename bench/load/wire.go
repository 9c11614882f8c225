package main

// Just enough protobuf to build etcd's requests and to read what is measured in its answers.
// Messages travel as bytes, so that the client costs as little as it can: on a small machine it
// shares the processor with the server it measures.

func varint(out []byte, n uint64) []byte {
	for n >= 0x80 {
		out = append(out, byte(n)|0x80)
		n >>= 7
	}
	return append(out, byte(n))
}

func fieldVarint(out []byte, number int, n uint64) []byte {
	return varint(append(out, byte(number<<3)), n)
}

func fieldBytes(out []byte, number int, value []byte) []byte {
	out = varint(append(out, byte(number<<3|2)), uint64(len(value)))
	return append(out, value...)
}

func putRequest(key, value []byte) []byte {
	out := make([]byte, 0, len(key)+len(value)+16)
	return fieldBytes(fieldBytes(out, 1, key), 2, value)
}

func rangeRequest(key, end []byte, limit, revision int64) []byte {
	out := fieldBytes(nil, 1, key)
	if end != nil {
		out = fieldBytes(out, 2, end)
	}
	if limit > 0 {
		out = fieldVarint(out, 3, uint64(limit))
	}
	if revision > 0 {
		out = fieldVarint(out, 4, uint64(revision))
	}
	return out
}

// updateRequest is what kube-apiserver sends to create (modRevision 0) or update an object: If
// its mod revision is this one Then put Else get it.
func updateRequest(key, value []byte, modRevision int64) []byte {
	const targetMod = 2
	compare := fieldVarint(nil, 2, targetMod)
	compare = fieldBytes(compare, 3, key)
	compare = fieldVarint(compare, 6, uint64(modRevision))
	then := fieldBytes(nil, 2, putRequest(key, value))
	orElse := fieldBytes(nil, 1, rangeRequest(key, nil, 0, 0))
	out := make([]byte, 0, len(value)+3*len(key)+64)
	out = fieldBytes(out, 1, compare)
	out = fieldBytes(out, 2, then)
	return fieldBytes(out, 3, orElse)
}

func watchRequest(key, end []byte) []byte {
	create := fieldBytes(fieldBytes(nil, 1, key), 2, end)
	return fieldBytes(nil, 1, create)
}

// prefixEnd is the first key behind all keys of a prefix (which must not end in 0xff).
func prefixEnd(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	end[len(end)-1]++
	return end
}

func readVarint(in []byte) (uint64, []byte) {
	var n uint64
	for shift, at := uint(0), 0; at < len(in); at++ {
		n |= uint64(in[at]&0x7f) << shift
		if in[at] < 0x80 {
			return n, in[at+1:]
		}
		shift += 7
	}
	return 0, nil
}

// fields calls visit for each field of a message: value is set for bytes, n for numbers.
func fields(in []byte, visit func(number int, value []byte, n uint64)) {
	for len(in) > 0 {
		var tag, n uint64
		tag, in = readVarint(in)
		number := int(tag >> 3)
		switch tag & 7 {
		case 0:
			n, in = readVarint(in)
			visit(number, nil, n)
		case 2:
			n, in = readVarint(in)
			if n > uint64(len(in)) {
				return
			}
			visit(number, in[:n], 0)
			in = in[n:]
		default:
			return
		}
	}
}

// headerRevision is header.revision of any answer of etcd's.
func headerRevision(in []byte) (revision int64) {
	fields(in, func(number int, value []byte, _ uint64) {
		if number == 1 {
			fields(value, func(number int, _ []byte, n uint64) {
				if number == 3 {
					revision = int64(n)
				}
			})
		}
	})
	return revision
}

// txnSucceeded is the succeeded flag of a TxnResponse.
func txnSucceeded(in []byte) (succeeded bool) {
	fields(in, func(number int, _ []byte, n uint64) {
		if number == 2 {
			succeeded = n != 0
		}
	})
	return succeeded
}

// watchEvents calls visit with the value of each put in a WatchResponse, and says whether it is
// the answer to a create.
func watchEvents(in []byte, visit func(value []byte)) (created bool) {
	fields(in, func(number int, event []byte, n uint64) {
		switch number {
		case 3:
			created = n != 0
		case 11:
			fields(event, func(number int, kv []byte, _ uint64) {
				if number == 2 {
					fields(kv, func(number int, value []byte, _ uint64) {
						if number == 5 {
							visit(value)
						}
					})
				}
			})
		}
	})
	return created
}
