//! What Windows and its drivers hand over as bytes, made into values. Used by `windows`; pure, so that it is tested everywhere.

use crate::facts::Value;

/// `REG_SZ`, `REG_EXPAND_SZ`, `REG_DWORD`, `REG_MULTI_SZ` and `REG_QWORD`, as winnt.h numbers them.
const SZ: u32 = 1;
const EXPAND_SZ: u32 = 2;
const DWORD: u32 = 4;
const MULTI_SZ: u32 = 7;
const QWORD: u32 = 11;

/// A registry value of this type. Bytes that do not fit their type, as some installers leave them, stay bytes.
pub fn value(kind: u32, bytes: &[u8]) -> Value {
    let number = match kind {
        DWORD => bytes.try_into().ok().map(u32::from_le_bytes).map(u64::from),
        QWORD => bytes.try_into().ok().map(u64::from_le_bytes),
        SZ | EXPAND_SZ => return Value::Text(until_nul(&wide(bytes))),
        MULTI_SZ => return Value::Texts(texts(&wide(bytes))),
        _ => None,
    };
    number.map_or_else(|| Value::Bytes(bytes.to_vec()), Value::Number)
}

fn wide(bytes: &[u8]) -> Vec<u16> {
    bytes.as_chunks().0.iter().map(|pair| u16::from_le_bytes(*pair)).collect()
}

/// Text up to its first NUL. Half a surrogate becomes the replacement character: a name that Windows cannot print either.
pub fn until_nul(units: &[u16]) -> String {
    let end = units.iter().position(|u| *u == 0).unwrap_or(units.len());
    String::from_utf16_lossy(units.get(..end).unwrap_or_default())
}

/// Strings with a NUL behind each and one behind all. Empty ones count, although the format was not made for them: in
/// `PendingFileRenameOperations` an empty one says "delete".
fn texts(units: &[u16]) -> Vec<String> {
    let list = units.strip_suffix(&[0, 0]).or_else(|| units.strip_suffix(&[0])).unwrap_or(units);
    if list.is_empty() {
        return Vec::new();
    }
    list.split(|u| *u == 0).map(String::from_utf16_lossy).collect()
}

/// What xeniface expects for a write: path and value, a NUL behind each, and one more.
pub fn store_write(path: &str, value: &str) -> Vec<u8> {
    [path.as_bytes(), &[0], value.as_bytes(), &[0, 0]].concat()
}

/// What xeniface hands back from a read: the value and a NUL, in a buffer that may go on.
pub fn store_value(buffer: &[u8]) -> String {
    let end = buffer.iter().position(|b| *b == 0).unwrap_or(buffer.len());
    String::from_utf8_lossy(buffer.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn a_value_is_what_its_type_says_or_its_bytes() {
        assert_eq!(value(SZ, &bytes("on\0junk")), Value::Text("on".to_owned()));
        assert_eq!(value(SZ, &bytes("no end")), Value::Text("no end".to_owned()));
        assert_eq!(value(DWORD, &[1, 0, 0, 0]), Value::Number(1));
        assert_eq!(value(QWORD, &[0, 1, 0, 0, 0, 0, 0, 0]), Value::Number(256));
        assert_eq!(value(DWORD, &[1]), Value::Bytes(vec![1]));
        assert_eq!(value(3, &[9]), Value::Bytes(vec![9]));
    }

    #[test]
    fn the_deletions_among_pending_renames_are_kept() {
        let list = |text| value(MULTI_SZ, &bytes(text));
        let texts = |all: &[&str]| Value::Texts(all.iter().map(|s| (*s).to_owned()).collect());
        assert_eq!(list("a\0\0b\0c\0\0"), texts(&["a", "", "b", "c"]));
        assert_eq!(list("a\0\0\0"), texts(&["a", ""]));
        assert_eq!(list("a\0\0"), texts(&["a"]));
        assert_eq!(list("a\0"), texts(&["a"]));
        assert_eq!(list("\0"), texts(&[]));
        assert_eq!(list(""), texts(&[]));
    }

    #[test]
    fn the_store_is_spoken_to_in_strings_that_end() {
        assert_eq!(store_write("vm-data/a", "1"), b"vm-data/a\x001\0\0");
        assert_eq!(store_value(b"abc\0\0\0"), "abc");
        assert_eq!(store_value(b"abc"), "abc");
    }
}
