//! A look through a Parquet footer and the headers of its pages before the library reads them: Thrift's compact protocol, whatever
//! the fields mean.
//!
//! The library takes the length of a list that it passes over as it stands, and what such a list of truth values holds takes
//! no bytes there: a file of a few bytes keeps it busy for hours. Neither footers nor page headers have lists of truth values.

/// Structs and lists in one another; a footer has half as many.
const DEPTH: usize = 32;

/// The type of a field or item that is a list, and so on; those below 8 are numbers.
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;
const UUID: u8 = 13;

/// What is wrong with a struct, as the words after its name.
type Wrong = &'static str;

const ENDLESS: Wrong = "has a list of truth values, as none has";

/// Checks that `bytes` begin with a struct all parts of which are as long as it says.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check(bytes: &[u8]) -> Result<(), Wrong> {
    Walk { rest: bytes }.part(STRUCT, DEPTH)
}

/// What a column's bytes begin with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// A page, with so many bytes from the beginning of its header to its end, and so many once its data are unpacked.
    Of { length: u64, unpacked: u64 },
    /// No header that could be read; one that needs more bytes, it may be.
    Unknown,
    /// A header that the library would not come to an end with, and why.
    Endless(Wrong),
}

/// Looks at the header of a page.
pub(crate) fn page(bytes: &[u8]) -> Page {
    let mut walk = Walk { rest: bytes };
    match walk.page_sizes() {
        Ok((unpacked, packed)) => {
            Page::Of { length: (bytes.len() - walk.rest.len()) as u64 + packed, unpacked }
        }
        Err(ENDLESS) => Page::Endless(ENDLESS),
        Err(_) => Page::Unknown,
    }
}

struct Walk<'a> {
    rest: &'a [u8],
}

impl Walk<'_> {
    fn part(&mut self, kind: u8, depth: usize) -> Result<(), Wrong> {
        let depth = depth.checked_sub(1).ok_or("is nested too deep")?;
        match kind {
            // A field that is a truth value is its own type.
            1 | 2 => Ok(()),
            3 => self.pass(1),
            4..=6 => self.number().map(drop),
            7 => self.pass(8),
            BINARY => {
                let length = self.number()?;
                self.pass(length)
            }
            LIST | SET => {
                let head = self.byte()?;
                let size = if head >> 4 == 15 { self.number()? } else { u64::from(head >> 4) };
                self.items(size, &[head & 15], depth)
            }
            MAP => match self.number()? {
                0 => Ok(()),
                size => {
                    let kinds = self.byte()?;
                    self.items(size, &[kinds >> 4, kinds & 15], depth)
                }
            },
            STRUCT => loop {
                let head = self.byte()?;
                if head == 0 {
                    return Ok(());
                }
                // Its id, where it is not so much above the one before.
                if head >> 4 == 0 {
                    self.number()?;
                }
                self.part(head & 15, depth)?;
            },
            UUID => self.pass(16),
            _ => Err("has parts of no known type"),
        }
    }

    /// Passes over a page's header; its fields `uncompressed_page_size` and `compressed_page_size`.
    fn page_sizes(&mut self) -> Result<(u64, u64), Wrong> {
        const UNPACKED: u64 = 2;
        const PACKED: u64 = 3;
        let (mut id, mut sizes) = (0_u64, [None; 2]);
        loop {
            let head = self.byte()?;
            if head == 0 {
                let [unpacked, packed] = sizes;
                return unpacked.zip(packed).ok_or("has no size");
            }
            id = match head >> 4 {
                0 => zigzag(self.number()?) as u64,
                more => id.wrapping_add(u64::from(more)),
            };
            match head & 15 {
                5 if matches!(id, UNPACKED | PACKED) => {
                    let size = u64::try_from(zigzag(self.number()?)).map_err(|_| "has no size")?;
                    sizes[usize::from(id == PACKED)] = Some(size);
                }
                kind => self.part(kind, DEPTH)?,
            }
        }
    }

    fn items(&mut self, size: u64, kinds: &[u8], depth: usize) -> Result<(), Wrong> {
        if kinds.iter().any(|kind| matches!(kind, 1 | 2)) {
            return Err(ENDLESS);
        }
        if size > self.rest.len() as u64 {
            return Err("has a list that is longer than itself");
        }
        for _ in 0..size {
            kinds.iter().try_for_each(|kind| self.part(*kind, depth))?;
        }
        Ok(())
    }

    fn pass(&mut self, bytes: u64) -> Result<(), Wrong> {
        let rest = usize::try_from(bytes).ok().and_then(|bytes| self.rest.get(bytes..));
        self.rest = rest.ok_or("ends amid a part")?;
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, Wrong> {
        let byte = self.rest.first().copied();
        self.pass(1)?;
        Ok(byte.unwrap_or_default())
    }

    fn number(&mut self) -> Result<u64, Wrong> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err("has a number of more than 64 bits")
    }
}

/// A number with a sign, as it is written.
fn zigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_are_as_long_as_they_say_pass() {
        // A number, a text, a list of structs, a map of numbers to texts; field 20 by its whole id.
        check(b"\x15\x02\x18\x02ab\x19\x2c\x15\x04\x00\x00\x1b\x01\x58\x02\x01x\x05\x28\x02\x00")
            .unwrap();
    }

    #[test]
    fn what_would_keep_the_library_busy_is_refused() {
        let long = b"\xff\xff\xff\xff\x07";
        for (bytes, why) in [
            ([b"\x19\xf1", &long[..]].concat(), "a list of truth values"),
            ([b"\x1b", &long[..], b"\x12"].concat(), "a list of truth values"),
            ([b"\x19\xf5", &long[..], b"\x02"].concat(), "longer than itself"),
            ([b"\x18", &long[..], b"x"].concat(), "ends amid a part"),
            (b"\x1c".repeat(40), "nested too deep"),
            (b"\x1e\x00".to_vec(), "no known type"),
            (b"\x15\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01".to_vec(), "more than 64 bits"),
            (Vec::new(), "ends amid a part"),
        ] {
            let error = check(&bytes).unwrap_err();
            assert!(error.contains(why), "{bytes:?}: {error}");
        }
    }

    #[test]
    fn a_page_is_as_long_as_its_header_and_its_data() {
        // type 0, 34 bytes, 20 of them once compressed, and a header of its kind with a number.
        let header = b"\x15\x00\x15\x44\x15\x28\x2c\x15\x08\x00\x00";
        let of = |header: u64| Page::Of { length: header + 20, unpacked: 34 };
        assert_eq!(page(&[&header[..], b"data"].concat()), of(header.len() as u64));
        // The sizes by their whole ids; a bit more, and one and then both left out.
        assert_eq!(page(b"\x05\x04\x44\x05\x06\x28\x00"), of(7));
        for cut in 0..header.len() {
            assert_eq!(page(&header[..cut]), Page::Unknown, "{cut}");
        }
        for none in [&b"\x25\x44\x00"[..], b"\x35\x28\x00", b"\x15\x00\x00"] {
            assert_eq!(page(none), Page::Unknown, "{none:?}");
        }
        assert_eq!(page(b"\x25\x44\x15\x27\x00"), Page::Unknown, "20 bytes less than none");
        assert_eq!(page(b"\x25\x43\x15\x28\x00"), Page::Unknown, "34 bytes less than none");
        for list in [&b"\x19\xf1\xff\xff\xff\xff\x07"[..], b"\x15\x00\x19\x22"] {
            assert_eq!(page(list), Page::Endless("has a list of truth values, as none has"));
        }
    }
}
