//! What a row group's pages say of themselves, looked at before the library decodes them: in a few bytes a page can say
//! that it has billions, a dictionary that every row is one long text, a list that it goes on without end.

use std::sync::Arc;

use parquet::basic::{Encoding, Type};
use parquet::column::page::Page as Decoded;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::ChunkReader;
use parquet::file::serialized_reader::SerializedPageReader;

use super::{ParquetSource, guarded, place};
use crate::error::{Error, Result};
use crate::thrift::{self, Page};

/// What a row group's pages may take once unpacked, the largest of each column: so much, or so many times what its columns
/// take packed. zstd alone packs better, and only what says nothing.
const UNPACKED_BYTES: u64 = 256 << 20;
const UNPACKED_TIMES: u64 = 4096;
/// What the texts of the rows decoded at once should take at most, were each as long as its page.
const TEXT_BYTES: u64 = 256 << 20;
/// What one row's bytes of a given number may take.
const FIXED_BYTES: u64 = 256 << 20;
/// The items that the lists of the rows decoded at once may have.
const LIST_ITEMS: u64 = 1 << 24;

/// What the columns of a row group say of themselves, together.
#[derive(Debug, Default)]
struct Claims {
    packed: u64,
    /// The largest page of each column, unpacked, and of these the columns of texts.
    unpacked: u64,
    texts: u64,
    /// Bytes of values whose type says how many they are.
    fixed: u64,
    /// Items of lists in all rows.
    items: u64,
}

impl ParquetSource {
    /// How many rows of a group are decoded at once, at most `wanted`.
    ///
    /// # Errors
    /// If a page header is not to be read, or a row or page would take more memory than such a file can be meant to fill.
    /// What is no header is left to the library's words.
    pub(super) fn bounded_rows(&self, group: usize, wanted: usize) -> Result<usize> {
        let fail = |what| Err(Error::Parquet { path: self.path.clone(), what });
        let claims = self.claims(group)?;
        // Columns may lie over one another.
        let packed = claims.packed.min(self.file.len);
        if claims.unpacked > packed.saturating_mul(UNPACKED_TIMES).max(UNPACKED_BYTES) {
            return fail(format!(
                "pages of row group {group} are said to take {} bytes once unpacked, where its columns take {packed}: \
                 over {UNPACKED_TIMES} times as much",
                claims.unpacked
            ));
        }
        if claims.fixed > FIXED_BYTES {
            let what = format!("takes {} bytes by the types of its columns", claims.fixed);
            return fail(format!("a row of row group {group} {what}, over {FIXED_BYTES}"));
        }
        let mut rows = (TEXT_BYTES / claims.texts.max(1)).max(1);
        // In most groups there are fewer in all rows together.
        if claims.items > LIST_ITEMS {
            let longest = self.longest_row(group)?;
            if longest > LIST_ITEMS {
                let what = format!("has lists of {longest} items, over {LIST_ITEMS}");
                return fail(format!("a row of row group {group} {what}"));
            }
            rows = rows.min(LIST_ITEMS / longest.max(1));
        }
        Ok(usize::try_from(rows).map_or(wanted, |rows| rows.min(wanted)))
    }

    fn claims(&self, group: usize) -> Result<Claims> {
        let mut sum = Claims::default();
        for column in self.footer.metadata().row_group(group).columns() {
            let (mut at, end) = place(column).unwrap_or_default();
            sum.packed = sum.packed.saturating_add(end - at);
            let (mut largest, mut values) = (0, 0_u64);
            while at < end {
                match self.page(at, end) {
                    Page::Of(page) => {
                        at = at.saturating_add(page.length);
                        largest = largest.max(page.unpacked);
                        values = values.saturating_add(page.values);
                    }
                    Page::Unknown => break,
                    Page::Refused(what) => {
                        let name = column.column_path().string();
                        let what = format!("a page header of the column {name} {what}");
                        return Err(Error::Parquet { path: self.path.clone(), what });
                    }
                }
            }
            sum.add(column, largest, values);
        }
        Ok(sum)
    }

    /// The page at `at` in a column that ends at `end`.
    fn page(&self, at: u64, end: u64) -> Page {
        // Few headers are longer: one that holds long values as a page's least and greatest.
        let mut length = (end - at).min(512);
        loop {
            let bytes = self.file.get_bytes(at, length as usize);
            let page = bytes.map_or(Page::Unknown, |bytes| thrift::page(&bytes));
            if page != Page::Unknown || length == end - at {
                return page;
            }
            length = (length * 8).min(end - at);
        }
    }

    /// The items that the lists of one row have at most, those of its columns together.
    fn longest_row(&self, group: usize) -> Result<u64> {
        let file = Arc::new(self.file.clone());
        let group = self.footer.metadata().row_group(group);
        let rows = usize::try_from(group.num_rows()).unwrap_or(0);
        guarded(&self.path, || {
            let mut sum = 0_u64;
            for column in group.columns().iter().filter(|column| is_list(column)) {
                let level = column.column_descr().max_rep_level() as u16;
                let mut lengths = Lengths::default();
                for page in SerializedPageReader::new(Arc::clone(&file), column, rows, None)? {
                    lengths.page(&page?, u16::BITS - level.leading_zeros());
                }
                sum = sum.saturating_add(lengths.longest);
            }
            Ok(sum)
        })
    }
}

impl Claims {
    fn add(&mut self, column: &ColumnChunkMetaData, largest: u64, values: u64) {
        let to = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        to(&mut self.unpacked, largest);
        match column.column_type() {
            Type::BYTE_ARRAY => to(&mut self.texts, largest),
            Type::FIXED_LEN_BYTE_ARRAY => {
                let length = u64::try_from(column.column_descr().type_length()).unwrap_or(0);
                to(&mut self.fixed, length);
            }
            _ => {}
        }
        if is_list(column) {
            to(&mut self.items, values);
        }
    }
}

fn is_list(column: &ColumnChunkMetaData) -> bool {
    column.column_descr().max_rep_level() > 0
}

/// How many values a column's rows have, by its repetition levels: 0 where a row begins.
#[derive(Debug, Default)]
struct Lengths {
    current: u64,
    longest: u64,
}

impl Lengths {
    fn page(&mut self, page: &Decoded, width: u32) {
        let (levels, values) = match page {
            Decoded::DataPage { buf, num_values, rep_level_encoding, .. } => {
                // Their bytes come after their number; BIT_PACKED, given up long ago, is taken for one row.
                let levels = buf
                    .split_first_chunk()
                    .and_then(|(length, rest)| rest.get(..u32::from_le_bytes(*length) as usize));
                let rle = *rep_level_encoding == Encoding::RLE;
                (levels.filter(|_| rle), *num_values)
            }
            Decoded::DataPageV2 { buf, num_values, rep_levels_byte_len, .. } => {
                (buf.get(..*rep_levels_byte_len as usize), *num_values)
            }
            Decoded::DictionaryPage { .. } => return,
        };
        self.levels(levels.unwrap_or_default(), width, u64::from(values));
    }

    /// Levels of `width` bits in Parquet's hybrid of runs and packed bits. Values that have no level belong to the last row.
    fn levels(&mut self, mut bytes: &[u8], width: u32, values: u64) {
        let mut left = values;
        while left > 0 {
            let Ok(head) = thrift::varint(&mut bytes) else { break };
            if head & 1 == 0 {
                let width = width.div_ceil(8) as usize;
                let Some((level, rest)) = bytes.split_at_checked(width) else { break };
                let count = (head >> 1).min(left);
                self.run(level.iter().all(|&byte| byte == 0), count);
                (bytes, left) = (rest, left - count);
            } else {
                let packed = (head >> 1).saturating_mul(u64::from(width));
                let packed = usize::try_from(packed).map_or(bytes.len(), |n| n.min(bytes.len()));
                let (packed, rest) = bytes.split_at(packed);
                let count = (packed.len() as u64 * 8 / u64::from(width)).min(left);
                for value in 0..count {
                    let bits = value * u64::from(width)..(value + 1) * u64::from(width);
                    let zero = |bit: u64| packed[(bit / 8) as usize] >> (bit % 8) & 1 == 0;
                    self.run(bits.into_iter().all(zero), 1);
                }
                (bytes, left) = (rest, left - count);
            }
        }
        self.run(false, left);
    }

    /// So many values of one level: rows of one value, or what goes on with a row.
    fn run(&mut self, begin: bool, count: u64) {
        if count > 0 {
            self.current = if begin { 1 } else { self.current.saturating_add(count) };
            self.longest = self.longest.max(self.current);
        }
    }
}

#[cfg(test)]
mod tests;
