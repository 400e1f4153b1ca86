//! Where a message's body ends (RFC 9112, sections 6.3 and 7.1). Read strictly: whoever pads chunks or ends lines with a
//! bare LF may be understood in two ways.

use super::verdict::Why;

/// The longest chunk extensions, and the longest trailers.
const MOST_LINE: u16 = 16 * 1024;

/// A body under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// So many bytes are still to come; at least one.
    Length(u64),
    /// In chunks.
    Chunked(Chunk),
    /// Until the connection is closed.
    UntilClose,
}

/// Where in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Its size: what has been read of it, and how many digits that were.
    Size(u64, u8),
    /// Behind the size: extensions, so many bytes of them.
    Extension(u64, u16),
    /// At the LF of that line.
    SizeEnd(u64),
    /// So many bytes of data are to come; at least one.
    Data(u64),
    /// At the CR after the data.
    DataCr,
    /// At the LF after the data.
    DataLf,
    /// At the beginning of a trailer line, or the end; so many bytes of trailers have been read.
    Line(u16),
    /// In a trailer line.
    Trailer(u16),
    /// At the LF of a trailer line.
    TrailerLf(u16),
    /// At the last LF.
    EndLf,
    /// Behind the end.
    End,
}

impl Body {
    /// One in chunks, from its beginning.
    pub(super) const CHUNKED: Self = Self::Chunked(Chunk::Size(0, 0));

    /// Reads on. Says how many of `bytes` belong to the body, and whether it ends there.
    ///
    /// # Errors
    /// [`Why::BadChunk`], [`Why::TooLong`].
    pub(super) fn eat(&mut self, bytes: &[u8]) -> Result<(usize, bool), Why> {
        match self {
            Self::UntilClose => Ok((bytes.len(), false)),
            Self::Length(left) => {
                let eaten = skip(left, bytes);
                Ok((eaten, *left == 0))
            }
            Self::Chunked(chunk) => chunk.eat(bytes),
        }
    }
}

/// Goes over at most `left` bytes.
fn skip(left: &mut u64, bytes: &[u8]) -> usize {
    // Not longer than `bytes`, so it fits.
    let eaten = (*left).min(bytes.len() as u64) as usize;
    *left -= eaten as u64;
    eaten
}

impl Chunk {
    fn eat(&mut self, bytes: &[u8]) -> Result<(usize, bool), Why> {
        let mut at = 0;
        while at < bytes.len() && *self != Self::End {
            if let Self::Data(left) = self {
                at += skip(left, &bytes[at..]);
                if *left == 0 {
                    *self = Self::DataCr;
                }
            } else {
                *self = self.step(bytes[at])?;
                at += 1;
            }
        }
        Ok((at, *self == Self::End))
    }

    /// One byte that is not data.
    fn step(self, byte: u8) -> Result<Self, Why> {
        Ok(match (self, byte) {
            (Self::Size(size, digits), byte) if byte.is_ascii_hexdigit() => digit(size, digits, byte)?,
            (Self::Size(size, 1..), b'\r') | (Self::Extension(size, _), b'\r') => Self::SizeEnd(size),
            (Self::Size(size, 1..), b';') => Self::Extension(size, 0),
            (Self::Extension(size, len), byte) if is_text(byte) => Self::Extension(size, longer(len)?),
            (Self::SizeEnd(0), b'\n') => Self::Line(0),
            (Self::SizeEnd(size), b'\n') => Self::Data(size),
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Size(0, 0),
            (Self::Line(_), b'\r') => Self::EndLf,
            (Self::Trailer(len), b'\r') => Self::TrailerLf(len),
            (Self::Line(len) | Self::Trailer(len), byte) if is_text(byte) => Self::Trailer(longer(len)?),
            (Self::TrailerLf(len), b'\n') => Self::Line(len),
            (Self::EndLf, b'\n') => Self::End,
            _ => return Err(Why::BadChunk),
        })
    }
}

fn digit(size: u64, digits: u8, byte: u8) -> Result<Chunk, Why> {
    let value = char::from(byte).to_digit(16).unwrap_or_default();
    // 15 digits are more than any chunk has, and cannot overflow.
    if digits == 15 {
        return Err(Why::BadChunk);
    }
    Ok(Chunk::Size(size << 4 | u64::from(value), digits + 1))
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || byte >= b' ' && byte != 0x7f
}

fn longer(len: u16) -> Result<u16, Why> {
    if len < MOST_LINE { Ok(len + 1) } else { Err(Why::TooLong) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Eats piece by piece; how many bytes there were until the end.
    fn eat(mut body: Body, bytes: &[u8], piece: usize) -> Result<Option<usize>, Why> {
        let mut at = 0;
        for piece in bytes.chunks(piece.max(1)) {
            let (eaten, done) = body.eat(piece)?;
            at += eaten;
            if done {
                return Ok(Some(at));
            }
            assert_eq!(eaten, piece.len(), "what is not the end is eaten whole");
        }
        Ok(None)
    }

    #[test]
    fn ends_are_found() {
        let cases: &[(&[u8], Result<Option<usize>, Why>)] = &[
            (b"0\r\n\r\nGET", Ok(Some(5))),
            (b"5\r\nhello\r\n0\r\n\r\n", Ok(Some(15))),
            (b"5;a=\"b c\"\r\nhello\r\n00\r\nX: y\r\nZ:\r\n\r\n", Ok(Some(34))),
            (b"a\r\n0\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n", Ok(Some(20))),
            (b"A\r\n0123456789\r\n0\r\n", Ok(None)),
            (b"\r\n", Err(Why::BadChunk)),
            (b"5 \r\nhello", Err(Why::BadChunk)),
            (b"0x5\r\nhello", Err(Why::BadChunk)),
            (b"-5\r\nhello", Err(Why::BadChunk)),
            (b"5\nhello", Err(Why::BadChunk)),
            (b"5\r\nhello!\r\n", Err(Why::BadChunk)),
            (b"5\r\nhello\n0\r\n", Err(Why::BadChunk)),
            (b"0\r\nX: y\n\r\n", Err(Why::BadChunk)),
            (b"1000000000000000\r\n", Err(Why::BadChunk)),
            (b"0\r\n\rX", Err(Why::BadChunk)),
        ];
        for (bytes, expected) in cases {
            for piece in [1, 2, 3, 1000] {
                let text = String::from_utf8_lossy(bytes);
                assert_eq!(eat(Body::CHUNKED, bytes, piece), *expected, "{text:?} in pieces of {piece}");
            }
        }
        assert_eq!(eat(Body::Length(5), b"helloGET", 2), Ok(Some(5)));
        assert_eq!(eat(Body::Length(u64::MAX), b"hello", 2), Ok(None));
        assert_eq!(eat(Body::UntilClose, b"hello", 2), Ok(None));
    }

    #[test]
    fn endless_lines_are_refused() {
        let endless = [&b"5;"[..], &[b'x'; 20_000]].concat();
        assert_eq!(eat(Body::CHUNKED, &endless, 1000), Err(Why::TooLong));
        let endless = [&b"0\r\n"[..], &b"X: y\r\n".repeat(5_000)].concat();
        assert_eq!(eat(Body::CHUNKED, &endless, 1000), Err(Why::TooLong));
    }

    proptest! {
        #[test]
        fn garbage_ends_or_is_refused(bytes: Vec<u8>, piece: usize) {
            let _ = eat(Body::CHUNKED, &bytes, piece);
        }

        #[test]
        fn pieces_make_no_difference(bytes in "[0-9a-f;\r\n]{0,60}", piece in 1..7_usize) {
            prop_assert_eq!(eat(Body::CHUNKED, bytes.as_bytes(), piece), eat(Body::CHUNKED, bytes.as_bytes(), 1000));
        }
    }
}
