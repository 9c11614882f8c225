//! Just enough protobuf to build etcd's requests and to read what is measured in its answers.

/// Appends a varint.
pub fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Appends a number field.
pub fn number(out: &mut Vec<u8>, field: u32, n: u64) {
    varint(out, u64::from(field) << 3);
    varint(out, n);
}

/// Appends a bytes field.
pub fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    varint(out, u64::from(field) << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// A bytes field whose value `fill` appends.
pub fn nested(out: &mut Vec<u8>, field: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    bytes(out, field, &inner);
}

/// One field of a message.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    /// A number.
    Number(u64),
    /// Bytes, text or a message.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The bytes; none for a number.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Value::Bytes(bytes) => bytes,
            Value::Number(_) => &[],
        }
    }

    /// The number; 0 for bytes.
    pub fn number(self) -> u64 {
        match self {
            Value::Number(n) => n,
            Value::Bytes(_) => 0,
        }
    }
}

/// The fields of a message; it ends where the bytes make no sense.
pub struct Fields<'a>(pub &'a [u8]);

fn take_varint(data: &mut &[u8]) -> Option<u64> {
    let mut n = 0;
    for (at, byte) in data.iter().enumerate().take(10) {
        n |= u64::from(byte & 0x7f).checked_shl(7 * at as u32)?;
        if byte & 0x80 == 0 {
            *data = &data[at + 1..];
            return Some(n);
        }
    }
    None
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u32, Value<'a>);

    fn next(&mut self) -> Option<(u32, Value<'a>)> {
        let tag = take_varint(&mut self.0)?;
        let value = match tag & 7 {
            0 => Value::Number(take_varint(&mut self.0)?),
            2 => {
                let len = usize::try_from(take_varint(&mut self.0)?).ok()?;
                let (value, rest) = self.0.split_at_checked(len)?;
                self.0 = rest;
                Value::Bytes(value)
            }
            _ => return None,
        };
        Some(((tag >> 3) as u32, value))
    }
}

/// The last value of a field.
pub fn field(data: &[u8], number: u32) -> Option<Value<'_>> {
    Fields(data).filter(|(n, _)| *n == number).map(|(_, value)| value).last()
}

/// A field that is a number; 0 if it is not there.
pub fn number_of(data: &[u8], at: u32) -> u64 {
    field(data, at).map_or(0, Value::number)
}

/// A field that is bytes; empty if it is not there.
pub fn bytes_of(data: &[u8], at: u32) -> &[u8] {
    field(data, at).map_or(&[], Value::bytes)
}

/// `header.revision` of any answer.
pub fn revision(answer: &[u8]) -> u64 {
    number_of(bytes_of(answer, 1), 3)
}

/// A PutRequest.
pub fn put(out: &mut Vec<u8>, key: &[u8], value: &[u8], lease: u64) {
    bytes(out, 1, key);
    bytes(out, 2, value);
    if lease != 0 {
        number(out, 3, lease);
    }
}

/// What a RangeRequest says.
#[derive(Clone, Copy, Default)]
pub struct Range<'a> {
    /// The key, or the first of the range.
    pub key: &'a [u8],
    /// Where the range ends; empty for one key.
    pub end: &'a [u8],
    /// 0 for none.
    pub limit: u64,
    /// 0 for the newest.
    pub revision: u64,
    /// Only the count is wanted.
    pub count_only: bool,
    /// Values are not wanted.
    pub keys_only: bool,
}

/// A RangeRequest.
pub fn range(out: &mut Vec<u8>, range: &Range<'_>) {
    bytes(out, 1, range.key);
    if !range.end.is_empty() {
        bytes(out, 2, range.end);
    }
    if range.limit > 0 {
        number(out, 3, range.limit);
    }
    if range.revision > 0 {
        number(out, 4, range.revision);
    }
    if range.keys_only {
        number(out, 8, 1);
    }
    if range.count_only {
        number(out, 9, 1);
    }
}

/// A range of one key, as kube-apiserver asks for it.
pub fn get(key: &[u8]) -> Range<'_> {
    Range { key, limit: 1, ..Range::default() }
}

/// The page behind one that was answered, and more of it to come: where it begins.
pub fn next_page(answer: &[u8]) -> Option<Vec<u8>> {
    if number_of(answer, 3) == 0 {
        return None;
    }
    let mut next = bytes_of(bytes_of(answer, 2), 1).to_vec();
    next.push(0);
    Some(next)
}

/// A WatchRequest that creates a watch of a prefix from a revision on (0: from now); as
/// kube-apiserver's, with previous values and progress, or a plain one.
pub fn watch(out: &mut Vec<u8>, prefix: &[u8], start_revision: u64, kube: bool) {
    nested(out, 1, |create| {
        bytes(create, 1, prefix);
        bytes(create, 2, &prefix_end(prefix));
        if start_revision > 0 {
            number(create, 3, start_revision);
        }
        if kube {
            number(create, 4, 1);
            number(create, 6, 1);
        }
    });
}

/// What kube-apiserver does to create (mod revision 0) or update an object: If its mod revision is
/// this one Then put; and Else get it, unless it is a create.
pub fn update(out: &mut Vec<u8>, key: &[u8], value: &[u8], mod_revision: u64, lease: u64) {
    const TARGET_MOD: u64 = 2;
    nested(out, 1, |compare| {
        number(compare, 2, TARGET_MOD);
        bytes(compare, 3, key);
        number(compare, 6, mod_revision);
    });
    nested(out, 2, |op| nested(op, 2, |request| put(request, key, value, lease)));
    if mod_revision != 0 {
        nested(out, 3, |op| nested(op, 1, |request| bytes(request, 1, key)));
    }
}

/// What kube-apiserver does to delete an object.
pub fn delete(out: &mut Vec<u8>, key: &[u8], mod_revision: u64) {
    nested(out, 1, |compare| {
        number(compare, 2, 2);
        bytes(compare, 3, key);
        number(compare, 6, mod_revision);
    });
    nested(out, 2, |op| nested(op, 3, |request| bytes(request, 1, key)));
    nested(out, 3, |op| nested(op, 1, |request| bytes(request, 1, key)));
}

/// The mod revision of the object that the Else branch of an update read; 0 if there is none.
pub fn read_revision(txn: &[u8]) -> u64 {
    let range = bytes_of(bytes_of(txn, 3), 1);
    number_of(bytes_of(range, 2), 3)
}

/// The end of the range of all keys with a prefix (that does not end in 0xff).
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// Calls `each` with the mod revision and the value of every event's object in a WatchResponse.
pub fn events(answer: &[u8], mut each: impl FnMut(u64, &[u8])) {
    for (at, event) in Fields(answer) {
        if at == 11 {
            let object = bytes_of(event.bytes(), 2);
            each(number_of(object, 3), bytes_of(object, 5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back() {
        let mut message = Vec::new();
        number(&mut message, 3, u64::MAX);
        bytes(&mut message, 16, b"abc");
        nested(&mut message, 1, |header| number(header, 3, 300));
        assert_eq!(number_of(&message, 3), u64::MAX);
        assert_eq!(bytes_of(&message, 16), b"abc");
        assert_eq!(revision(&message), 300);
        for cut in 0..message.len() {
            let _ = Fields(&message[..cut]).count();
        }
    }

    #[test]
    fn prefixes_end_behind_their_keys() {
        assert_eq!(prefix_end(b"/a/"), b"/a0");
    }
}
