//! Headers of gRPC calls, as small and cheap as a long-lived client sends them.

/// The headers of all our requests but the path. The first request puts them into the peer's
/// dynamic table; later ones are an index a header.
const COMMON: [(&str, &str); 6] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "localhost"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
    ("user-agent", "jotd-load/0.1"),
];
const STATIC_ENTRIES: usize = 61;

/// What one connection has put into the peer's table.
#[derive(Default)]
pub struct Encoder {
    /// Insertions so far.
    inserted: usize,
    /// Paths by their number, with when they were inserted.
    paths: Vec<Option<usize>>,
}

impl Encoder {
    /// The header block of a request for `path`, which always has the number `at`.
    pub fn encode(&mut self, at: usize, path: &str, out: &mut Vec<u8>) {
        let first = self.inserted == 0;
        for (n, (name, value)) in COMMON.iter().enumerate() {
            if n == 3 {
                // Pseudo-headers come before the others.
                self.path(at, path, out);
            }
            if first {
                // Their places in the table are those of a first request: see `index`.
                self.insert(name, value, out);
            } else {
                let place = if n < 3 { n } else { n + 1 };
                self.index(place, out);
            }
        }
    }

    fn path(&mut self, at: usize, path: &str, out: &mut Vec<u8>) {
        if self.paths.len() <= at {
            self.paths.resize(at + 1, None);
        }
        match self.paths[at] {
            Some(place) => self.index(place, out),
            None => {
                self.paths[at] = Some(self.inserted);
                self.insert(":path", path, out);
            }
        }
    }

    /// A header that is not the same for all requests, and does not enter the table.
    pub fn plain(&self, name: &str, value: &str, out: &mut Vec<u8>) {
        out.extend([0, name.len() as u8]);
        out.extend(name.as_bytes());
        out.push(value.len() as u8);
        out.extend(value.as_bytes());
    }

    fn insert(&mut self, name: &str, value: &str, out: &mut Vec<u8>) {
        out.extend([0x40, name.len() as u8]);
        out.extend(name.as_bytes());
        out.push(value.len() as u8);
        out.extend(value.as_bytes());
        self.inserted += 1;
    }

    fn index(&self, place: usize, out: &mut Vec<u8>) {
        let index = STATIC_ENTRIES + self.inserted - place;
        assert!(index < 127, "more paths than one byte can index");
        out.push(0x80 | index as u8);
    }
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// gRPC's code; 2 (unknown) if there was none.
    pub code: u32,
    /// Its text.
    pub message: String,
}

/// Reads header blocks just well enough to find a gRPC status.
#[derive(Default)]
pub struct Decoder {
    /// Newest last.
    table: Vec<(Vec<u8>, Vec<u8>)>,
    size: usize,
    /// The last block that was all indices, and what it said: most blocks are one of two.
    known: Vec<(Vec<u8>, Option<Status>)>,
}

const TABLE_BYTES: usize = 4096;

/// Names (and values, where they matter) of the static table that a gRPC server may use.
fn fixed(index: usize) -> (&'static [u8], &'static [u8]) {
    match index {
        8 => (b":status", b"200"),
        9..=14 => (b":status", b"other"),
        31 => (b"content-type", b""),
        _ => (b"-", b""),
    }
}

impl Decoder {
    /// Takes a block; the status in it, if there is one.
    pub fn decode(&mut self, block: &[u8]) -> Result<Option<Status>, String> {
        if let Some((_, status)) = self.known.iter().find(|(known, _)| known == block) {
            return Ok(status.clone());
        }
        let mut rest = block;
        let mut changed = false;
        let mut code = None;
        let mut message = String::new();
        while let Some(&first) = rest.first() {
            let (name, value) = if first & 0x80 != 0 {
                self.entry(number(&mut rest, 7)?)?
            } else if first & 0xe0 == 0x20 {
                changed = true;
                let limit = number(&mut rest, 5)?;
                self.shrink(limit);
                continue;
            } else {
                let bits = if first & 0x40 != 0 { 6 } else { 4 };
                let at = number(&mut rest, bits)?;
                let name = if at == 0 { string(&mut rest)? } else { self.entry(at)?.0 };
                let value = string(&mut rest)?;
                if bits == 6 {
                    changed = true;
                    self.size += name.len() + value.len() + 32;
                    self.table.push((name.clone(), value.clone()));
                    self.shrink(TABLE_BYTES);
                }
                (name, value)
            };
            if name == b"grpc-status" {
                code = String::from_utf8_lossy(&value).parse().ok();
            } else if name == b"grpc-message" {
                message = String::from_utf8_lossy(&value).into_owned();
            } else if name == b":status" && value != b"200" {
                code = Some(2);
                message = format!("HTTP status {}", String::from_utf8_lossy(&value));
            }
        }
        let status = code.map(|code| Status { code, message });
        if changed {
            self.known.clear();
        } else if self.known.len() < 8 {
            self.known.push((block.to_vec(), status.clone()));
        }
        Ok(status)
    }

    fn entry(&self, index: usize) -> Result<(Vec<u8>, Vec<u8>), String> {
        if index <= STATIC_ENTRIES {
            let (name, value) = fixed(index);
            return Ok((name.to_vec(), value.to_vec()));
        }
        let back = index - STATIC_ENTRIES;
        let at = self.table.len().checked_sub(back).ok_or("an index beyond the table")?;
        Ok(self.table[at].clone())
    }

    fn shrink(&mut self, limit: usize) {
        let mut gone = 0;
        while self.size > limit && gone < self.table.len() {
            let (name, value) = &self.table[gone];
            self.size -= name.len() + value.len() + 32;
            gone += 1;
        }
        self.table.drain(..gone);
    }
}

fn number(rest: &mut &[u8], bits: u32) -> Result<usize, String> {
    let full = (1usize << bits) - 1;
    let (&first, mut tail) = rest.split_first().ok_or("a block that ends too early")?;
    let mut value = usize::from(first) & full;
    if value == full {
        let mut shift = 0;
        loop {
            let (&byte, after) = tail.split_first().ok_or("a block that ends too early")?;
            tail = after;
            value += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
            if shift > 28 {
                return Err("a number that is too long".to_owned());
            }
        }
    }
    *rest = tail;
    Ok(value)
}

fn string(rest: &mut &[u8]) -> Result<Vec<u8>, String> {
    let coded = rest.first().ok_or("a block that ends too early")? & 0x80 != 0;
    let len = number(rest, 7)?;
    if rest.len() < len {
        return Err("a string that ends too early".to_owned());
    }
    let (text, tail) = rest.split_at(len);
    *rest = tail;
    if !coded {
        return Ok(text.to_vec());
    }
    let mut out = Vec::new();
    httlib_huffman::decode(text, &mut out, httlib_huffman::DecoderSpeed::FourBits)
        .map_err(|why| format!("{why:?}"))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table as the peer keeps it.
    fn read(blocks: &[Vec<u8>]) -> Vec<Vec<(String, String)>> {
        let mut table: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut all = Vec::new();
        for block in blocks {
            let mut rest = &block[..];
            let mut headers = Vec::new();
            while let Some(first) = rest.first() {
                let pair = if first & 0x80 != 0 {
                    table[table.len() + STATIC_ENTRIES - number(&mut rest, 7).unwrap()].clone()
                } else {
                    assert_eq!(number(&mut rest, 6).unwrap(), 0);
                    let pair = (string(&mut rest).unwrap(), string(&mut rest).unwrap());
                    table.push(pair.clone());
                    pair
                };
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                headers.push((text(&pair.0), text(&pair.1)));
            }
            all.push(headers);
        }
        all
    }

    #[test]
    fn every_request_says_the_same_but_its_path() {
        let mut encoder = Encoder::default();
        let paths = ["/a/B", "/c/D", "/a/B", "/e/F", "/c/D", "/a/B"];
        let numbers = [0, 1, 0, 5, 1, 0];
        let blocks: Vec<Vec<u8>> = paths
            .iter()
            .zip(numbers)
            .map(|(path, at)| {
                let mut block = Vec::new();
                encoder.encode(at, path, &mut block);
                block
            })
            .collect();
        assert_eq!(blocks[5].len(), 7);
        for (headers, path) in read(&blocks).iter().zip(paths) {
            assert_eq!(headers.len(), 7);
            assert_eq!(headers[3], (":path".to_owned(), path.to_owned()));
            for (name, value) in COMMON {
                assert!(headers.contains(&(name.to_owned(), value.to_owned())));
            }
        }
    }

    #[test]
    fn finds_the_status() {
        let mut decoder = Decoder::default();
        let mut literal = |name: &str, value: &str| {
            let mut block = vec![0x40, name.len() as u8];
            block.extend(name.as_bytes());
            block.push(value.len() as u8);
            block.extend(value.as_bytes());
            decoder.decode(&block).unwrap()
        };
        assert_eq!(literal("content-type", "application/grpc"), None);
        assert_eq!(literal("grpc-status", "0").unwrap().code, 0);
        for _ in 0..3 {
            assert_eq!(decoder.decode(&[0x88, 0x80 | 63]).unwrap(), None);
            assert_eq!(decoder.decode(&[0x80 | 62]).unwrap().unwrap().code, 0);
        }
        // Another entry moves the indices.
        let block = [&[0x40, 1][..], b"x", &[1], b"y"].concat();
        decoder.decode(&block).unwrap();
        assert_eq!(decoder.decode(&[0x80 | 62]).unwrap(), None);
        assert_eq!(decoder.decode(&[0x80 | 63]).unwrap().unwrap().code, 0);
        assert!(decoder.decode(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(decoder.decode(&[0x40, 5, 1]).is_err());
    }
}
