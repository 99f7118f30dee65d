//! A look through a Parquet footer and the headers of its pages before the library reads them: Thrift's compact protocol, whatever
//! the fields mean.
//!
//! The library takes the length of a list that it passes over as it stands, and what such a list of truth values holds takes
//! no bytes there: a file of a few bytes keeps it busy for hours. Neither footers nor page headers have lists of truth values.

/// Structs and lists in one another; a footer has half as many.
const DEPTH: usize = 32;

/// The type of a field or item that is a list, and so on; those below 8 are numbers.
const I32: u8 = 5;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;
const UUID: u8 = 13;

/// What is wrong with a struct, as the words after its name.
type Wrong = &'static str;

const ENDLESS: Wrong = "has a list of truth values, as none has";
const CUT: Wrong = "ends amid a part";
const LONG: Wrong = "has a list that is longer than itself";
const NO_SIZE: Wrong = "has no size";

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
    /// A page.
    Of(PageSize),
    /// No header that could be read; one that needs more bytes, it may be.
    Unknown,
    /// A header that the library is not to read, and why.
    Refused(Wrong),
}

/// What a page's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageSize {
    /// Bytes from the beginning of the header to the page's end.
    pub(crate) length: u64,
    /// Bytes of its data once unpacked.
    pub(crate) unpacked: u64,
    /// Values, those that are null with them; 0 in a dictionary.
    pub(crate) values: u64,
}

/// Looks at the header of a page.
pub(crate) fn page(bytes: &[u8]) -> Page {
    let mut walk = Walk { rest: bytes };
    match walk.page() {
        Ok((packed, page)) => {
            let header = (bytes.len() - walk.rest.len()) as u64;
            Page::Of(PageSize { length: header + packed, ..page })
        }
        Err(CUT | LONG | NO_SIZE) => Page::Unknown,
        Err(wrong) => Page::Refused(wrong),
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
            STRUCT => {
                let mut id = 0;
                while let Some(kind) = self.field(&mut id)? {
                    self.part(kind, depth)?;
                }
                Ok(())
            }
            UUID => self.pass(16),
            _ => Err("has parts of no known type"),
        }
    }

    /// The head of a struct's next field: its type, and its id in place of the one before; none at the struct's end.
    fn field(&mut self, id: &mut i64) -> Result<Option<u8>, Wrong> {
        let head = self.byte()?;
        if head == 0 {
            return Ok(None);
        }
        *id = match head >> 4 {
            0 => zigzag(self.number()?),
            more => id.wrapping_add(i64::from(more)),
        };
        Ok(Some(head & 15))
    }

    /// Passes over a page's header: `compressed_page_size`, and the rest but for the header's own length.
    fn page(&mut self) -> Result<(u64, PageSize), Wrong> {
        const UNCOMPRESSED_PAGE_SIZE: i64 = 2;
        const COMPRESSED_PAGE_SIZE: i64 = 3;
        const DATA_PAGE_HEADER: i64 = 5;
        const DATA_PAGE_HEADER_V2: i64 = 8;
        let (mut id, mut unpacked, mut packed, mut values) = (0, None, None, 0);
        while let Some(kind) = self.field(&mut id)? {
            match (id, kind) {
                (UNCOMPRESSED_PAGE_SIZE, I32) => unpacked = Some(self.size()?),
                (COMPRESSED_PAGE_SIZE, I32) => packed = Some(self.size()?),
                (DATA_PAGE_HEADER | DATA_PAGE_HEADER_V2, STRUCT) => values = self.num_values()?,
                _ => self.part(kind, DEPTH)?,
            }
        }
        let (packed, unpacked) = packed.zip(unpacked).ok_or(NO_SIZE)?;
        Ok((packed, PageSize { length: 0, unpacked, values }))
    }

    /// Passes over what a header says of its kind of page: `num_values`.
    fn num_values(&mut self) -> Result<u64, Wrong> {
        const NUM_VALUES: i64 = 1;
        let (mut id, mut values) = (0, None);
        while let Some(kind) = self.field(&mut id)? {
            match (id, kind) {
                (NUM_VALUES, I32) => values = Some(self.size()?),
                _ => self.part(kind, DEPTH)?,
            }
        }
        values.ok_or(NO_SIZE)
    }

    fn size(&mut self) -> Result<u64, Wrong> {
        u64::try_from(zigzag(self.number()?)).map_err(|_| NO_SIZE)
    }

    fn items(&mut self, size: u64, kinds: &[u8], depth: usize) -> Result<(), Wrong> {
        if kinds.iter().any(|kind| matches!(kind, 1 | 2)) {
            return Err(ENDLESS);
        }
        if size > self.rest.len() as u64 {
            return Err(LONG);
        }
        for _ in 0..size {
            kinds.iter().try_for_each(|kind| self.part(*kind, depth))?;
        }
        Ok(())
    }

    fn pass(&mut self, bytes: u64) -> Result<(), Wrong> {
        let rest = usize::try_from(bytes).ok().and_then(|bytes| self.rest.get(bytes..));
        self.rest = rest.ok_or(CUT)?;
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, Wrong> {
        let byte = self.rest.first().copied();
        self.pass(1)?;
        Ok(byte.unwrap_or_default())
    }

    fn number(&mut self) -> Result<u64, Wrong> {
        varint(&mut self.rest)
    }
}

/// Takes a number of seven bits a byte, the lowest first, from the beginning of `bytes`.
///
/// # Errors
/// If they end before it does, or it has more than 64 bits.
pub(crate) fn varint(bytes: &mut &[u8]) -> Result<u64, Wrong> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(CUT)?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err("has a number of more than 64 bits")
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
        // type 0, 34 bytes, 20 of them once compressed, and a header of its kind with four values.
        let header = b"\x15\x00\x15\x44\x15\x28\x2c\x15\x08\x00\x00";
        let of = |header, values| Page::Of(PageSize { length: header + 20, unpacked: 34, values });
        assert_eq!(page(&[&header[..], b"data"].concat()), of(header.len() as u64, 4));
        // The second version's header, after a field that is none; all by their whole ids, in another order.
        assert_eq!(page(b"\x25\x44\x15\x28\x1b\x00\x4c\x15\x0a\x00\x00"), of(11, 5));
        assert_eq!(page(b"\x0c\x0a\x05\x02\x06\x00\x05\x06\x28\x05\x04\x44\x00"), of(13, 3));
        // A dictionary has none that count.
        assert_eq!(page(b"\x25\x44\x15\x28\x4c\x15\x0a\x00\x00"), of(9, 0));
        for cut in 0..header.len() {
            assert_eq!(page(&header[..cut]), Page::Unknown, "{cut}");
        }
    }

    #[test]
    fn what_is_no_page_is_told_from_what_is_not_to_be_read() {
        for (none, why) in [
            (&b"\x25\x44\x00"[..], "its packed size left out"),
            (b"\x35\x28\x00", "its unpacked size left out"),
            (b"\x25\x44\x15\x27\x00", "20 bytes less than none"),
            (b"\x25\x43\x15\x28\x00", "34 bytes less than none"),
            (b"\x25\x44\x15\x28\x2c\x15\x01\x00\x00", "a value less than none"),
            (b"\x25\x44\x15\x28\x2c\x00\x00", "no number of values"),
        ] {
            assert_eq!(page(none), Page::Unknown, "{why}");
        }
        for list in [&b"\x19\xf1\xff\xff\xff\xff\x07"[..], b"\x15\x00\x19\x22"] {
            assert_eq!(page(list), Page::Refused("has a list of truth values, as none has"));
        }
        assert_eq!(page(&b"\x1c".repeat(40)), Page::Refused("is nested too deep"));
    }
}
