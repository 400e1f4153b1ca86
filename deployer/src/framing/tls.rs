//! TLS, as far as it shows from outside: records (RFC 8446, section 5.1), of which nothing but type and length is read.

/// A record's type, version and length.
const HEADER: usize = 5;
/// change_cipher_spec, alert, handshake, application_data.
const TYPES: std::ops::RangeInclusive<u8> = 20..=23;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Bytes of a record at the most: 2^14, and what its protection may add (RFC 5246, section 6.2.3).
const LONGEST: usize = (1 << 14) + 2048;

/// Whether bytes begin a connection of TLS: a record with a ClientHello.
pub(super) fn is_hello(bytes: &[u8]) -> bool {
    match bytes {
        [HANDSHAKE, 3, 0..=4, _, _, CLIENT_HELLO, ..] => length(bytes).is_some(),
        _ => false,
    }
}

/// Whether bytes are whole records and nothing else. A message of another protocol that looks so by chance would have to
/// have the right length, too.
pub(super) fn are_records(mut bytes: &[u8]) -> bool {
    if bytes.is_empty() {
        return false;
    }
    while !bytes.is_empty() {
        match length(bytes).and_then(|length| bytes.get(HEADER + length..)) {
            Some(rest) => bytes = rest,
            None => return false,
        }
    }
    true
}

/// The length of the record that bytes begin with.
fn length(bytes: &[u8]) -> Option<usize> {
    let [kind, 3, 0..=4, high, low, ..] = *bytes else { return None };
    let length = usize::from(u16::from_be_bytes([high, low]));
    (TYPES.contains(&kind) && (1..=LONGEST).contains(&length)).then_some(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_are_known_by_type_version_and_length() {
        let hello = [22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
        assert!(is_hello(&hello) && !is_hello(b"GET / HTTP/1.1\r\n") && !is_hello(&hello[..5]));
        assert!(!is_hello(&[22, 3, 1, 2, 0, 2]), "a ServerHello");
        let data = [23, 3, 3, 0, 2, 9, 9];
        assert!(are_records(&data) && are_records(&[data, data].concat()));
        for other in
            [&[][..], &data[..6], &[23, 3, 3, 0, 0], &[24, 3, 3, 0, 1, 9], &[23, 2, 3, 0, 1, 9], b"\x17\x03\x03"]
        {
            assert!(!are_records(other), "{other:?}");
        }
        assert!(!are_records(&[&data[..], b"x"].concat()));
    }

    proptest! {
        #[test]
        fn whole_records_are_records(lengths in prop::collection::vec(1..400_u16, 1..5), kind in 20..=23_u8) {
            let record = |length: &u16| [&[kind, 3, 3][..], &length.to_be_bytes(), &vec![7; usize::from(*length)]].concat();
            let bytes: Vec<u8> = lengths.iter().flat_map(record).collect();
            prop_assert!(are_records(&bytes) && !are_records(&bytes[..bytes.len() - 1]));
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = (are_records(&bytes), is_hello(&bytes));
        }

        #[test]
        fn requests_and_answers_are_none(method in "[A-Z]{3,7}", rest in "\\PC{0,40}") {
            let texts = [format!("{method} /{rest} HTTP/1.1\r\n\r\n"), format!("HTTP/1.1 200 {rest}\r\n\r\n")];
            prop_assert!(texts.iter().all(|text| !are_records(text.as_bytes())));
        }
    }
}
