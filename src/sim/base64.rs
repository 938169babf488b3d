//! Base64 (RFC 4648, with padding): passwords of HTTP Basic come so, and bitmaps of changed blocks go so (xapi.md 4.4, 6.1).

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub fn encode(bytes: &[u8]) -> String {
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let at = |i: usize| u32::from(three.get(i).copied().unwrap_or_default());
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            let digit = usize::try_from(word >> (18 - 6 * i) & 63).ok().and_then(|n| ALPHABET.get(n));
            out.push(if i > three.len() { '=' } else { digit.map_or('=', |c| char::from(*c)) });
        }
    }
    out
}

/// `None` where the text is not base64.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').bytes().map(|c| ALPHABET.iter().position(|a| *a == c));
    let (mut out, mut word, mut bits) = (Vec::new(), 0_u32, 0);
    for digit in digits {
        word = (word << 6 | u32::try_from(digit?).ok()?) & 0xffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push(u8::try_from(word >> bits & 0xff).ok()?);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_comes_back() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("root:sécret", "cm9vdDpzw6ljcmV0")]
        {
            assert_eq!(encode(plain.as_bytes()), coded);
            assert_eq!(decode(coded).unwrap(), plain.as_bytes());
        }
        assert_eq!(decode("a b"), None);
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)).unwrap(), all);
    }
}
