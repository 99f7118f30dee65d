//! How numbers are divided among the ranks: each parameter in slices of whole blocks, one a rank, so that state in 8 bits, which
//! has a scale a block, is the same as undivided.

use std::ops::Range;

use data::batch::Share;
use tch::{Kind, Tensor};
use torch_ext::blockwise::BLOCK;

/// Numbers in a slice of a parameter of `numel`; the last ranks' may be shorter or empty.
pub(crate) fn slice_len(numel: i64, size: usize) -> i64 {
    let blocks = (numel + BLOCK - 1) / BLOCK;
    let size = size as i64;
    (blocks + size - 1) / size * BLOCK
}

/// The slice of a rank.
pub(crate) fn slice(numel: i64, share: Share) -> Range<i64> {
    let length = slice_len(numel, share.size);
    let start = (share.rank as i64 * length).min(numel);
    start..(start + length).min(numel)
}

/// Where the slices of a bucket's parameters lie in a table with a row for each rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    /// Index of the parameter.
    pub(super) param: usize,
    /// Its numbers in all.
    pub(super) numel: i64,
    /// The first column.
    pub(super) column: i64,
    /// Columns.
    pub(super) width: i64,
}

impl Slot {
    /// Puts all numbers of a parameter, `[numel]`, into `table`, `[ranks, columns]`.
    pub(super) fn write(&self, table: &Tensor, numbers: &Tensor) {
        let own = table.narrow(1, self.column, self.width);
        self.rows(numbers, &mut |row, count, part| {
            own.narrow(0, row, count).narrow(1, 0, part.size()[1]).copy_(part);
        });
    }

    /// The reverse of [`write`](Self::write).
    pub(super) fn read(&self, table: &Tensor, numbers: &Tensor) {
        let own = table.narrow(1, self.column, self.width);
        self.rows(numbers, &mut |row, count, part| {
            part.shallow_clone().copy_(&own.narrow(0, row, count).narrow(1, 0, part.size()[1]));
        });
    }

    /// Calls `f` with views of `numbers` that fill rows of the table: from this row on, so many, `[rows, numbers of a row]`.
    fn rows(&self, numbers: &Tensor, f: &mut dyn FnMut(i64, i64, &Tensor)) {
        let (full, rest) = (self.numel / self.width, self.numel % self.width);
        if full > 0 {
            f(0, full, &numbers.narrow(0, 0, full * self.width).view([full, self.width]));
        }
        if rest > 0 {
            f(full, 1, &numbers.narrow(0, full * self.width, rest).view([1, rest]));
        }
    }

    /// This rank's numbers in its row, `[columns]`, of the table: a view. Empty where the slice is.
    pub(super) fn own(&self, row: &Tensor, share: Share) -> Tensor {
        let slice = slice(self.numel, share);
        row.narrow(0, self.column, slice.end - slice.start)
    }
}

/// A table of so many ranks and columns, fp32 zeros.
pub(super) fn table(size: usize, columns: i64, device: tch::Device) -> Tensor {
    Tensor::zeros([size as i64, columns], (Kind::Float, device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn slices_are_whole_blocks_and_make_up_the_parameter() {
        for (numel, size, expected) in [
            (1000, 2, vec![0..512, 512..1000]),
            (100, 2, vec![0..100, 100..100]),
            (1024, 4, vec![0..256, 256..512, 512..768, 768..1024]),
            (1025, 4, vec![0..512, 512..1024, 1024..1025, 1025..1025]),
            (7, 2, vec![0..7, 7..7]),
        ] {
            let slices: Vec<_> = (0..size).map(|rank| slice(numel, Share { rank, size })).collect();
            assert_eq!(slices, expected, "{numel} in {size}");
        }
    }

    #[test]
    fn what_is_written_into_a_table_is_read_again() {
        for numel in [3, 256, 600, 1025] {
            let numbers = Tensor::arange(numel, (Kind::Float, Device::Cpu)) + 1.0;
            let slot = Slot { param: 0, numel, column: 5, width: slice_len(numel, 3) };
            let table = table(3, 5 + slot.width, Device::Cpu);
            slot.write(&table, &numbers);
            assert_eq!(table.sum(Kind::Double).double_value(&[]), (numel * (numel + 1) / 2) as f64);
            let again = Tensor::zeros_like(&numbers);
            slot.read(&table, &again);
            assert_eq!(again, numbers);
            let own: Vec<f32> = (0..3)
                .flat_map(|rank| {
                    let row = table.get(rank);
                    let share = Share { rank: rank as usize, size: 3 };
                    Vec::<f32>::try_from(slot.own(&row, share)).unwrap()
                })
                .collect();
            assert_eq!(own, Vec::<f32>::try_from(&numbers).unwrap());
        }
    }
}
