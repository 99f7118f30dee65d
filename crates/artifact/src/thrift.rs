//! A look through a Parquet footer before the library reads it: Thrift's compact protocol, whatever the fields mean.
//!
//! The library takes the length of a list that it passes over as it stands, and what such a list of truth values holds takes
//! no bytes there: a file of a few bytes keeps it busy for hours. No footer has a list of truth values.

/// Structs and lists in one another; a footer has half as many.
const DEPTH: usize = 32;

/// The type of a field or item that is a list, and so on; those below 8 are numbers.
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;
const UUID: u8 = 13;

/// Checks that `bytes` begin with a struct all parts of which are as long as it says.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check(bytes: &[u8]) -> Result<(), &'static str> {
    Walk { rest: bytes }.part(STRUCT, DEPTH)
}

struct Walk<'a> {
    rest: &'a [u8],
}

impl Walk<'_> {
    fn part(&mut self, kind: u8, depth: usize) -> Result<(), &'static str> {
        let depth = depth.checked_sub(1).ok_or("its footer is nested too deep")?;
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
            _ => Err("its footer has parts of no known type"),
        }
    }

    fn items(&mut self, size: u64, kinds: &[u8], depth: usize) -> Result<(), &'static str> {
        if kinds.iter().any(|kind| matches!(kind, 1 | 2)) {
            return Err("its footer has a list of truth values, as no Parquet footer has");
        }
        if size > self.rest.len() as u64 {
            return Err("its footer has a list that is longer than itself");
        }
        for _ in 0..size {
            kinds.iter().try_for_each(|kind| self.part(*kind, depth))?;
        }
        Ok(())
    }

    fn pass(&mut self, bytes: u64) -> Result<(), &'static str> {
        let rest = usize::try_from(bytes).ok().and_then(|bytes| self.rest.get(bytes..));
        self.rest = rest.ok_or("its footer ends amid a part")?;
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, &'static str> {
        let byte = self.rest.first().copied();
        self.pass(1)?;
        Ok(byte.unwrap_or_default())
    }

    fn number(&mut self) -> Result<u64, &'static str> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err("its footer has a number of more than 64 bits")
    }
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
}
