//! Rows on disk: a file for each batch, so that a run that was stopped goes on behind the last one.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use artifact::rows::{Cell, Column, TableReader, TableWriter};
use stage::{Context, ErrorExt as _, Progress, basis};

/// How rows lie in a table.
pub(crate) trait Form {
    type Row;

    fn columns(&self) -> Vec<Column>;

    fn cells(&self, row: &Self::Row) -> Vec<Cell>;

    /// # Errors
    /// Cells that [`cells`](Self::cells) did not make.
    fn row(&self, cells: Vec<Cell>) -> anyhow::Result<Self::Row>;
}

/// The batches of a run that are on disk.
pub(crate) struct Parts<F> {
    dir: PathBuf,
    form: F,
    done: Vec<PathBuf>,
    rows: usize,
}

impl<F: Form> Parts<F> {
    /// Finds what an earlier, unfinished run left. No row depends on the keys `free` of the configuration.
    ///
    /// # Errors
    /// Parts of a run with another configuration or other inputs; damaged ones.
    pub(crate) fn open(ctx: &Context, form: F, free: &[&str]) -> anyhow::Result<Self> {
        let dir = ctx.run_dir.checkpoints_dir();
        basis::check(ctx, &dir, free)?;
        let mut parts = Self { dir, form, done: Vec::new(), rows: 0 };
        while parts.path(parts.rows).exists() {
            let path = parts.path(parts.rows);
            let rows = parts.read(&path)?.len();
            anyhow::ensure!(rows > 0, "{}: has no rows", path.display());
            parts.rows += rows;
            parts.done.push(path);
        }
        if parts.rows > 0 {
            tracing::info!("goes on from {}, {} prompts done", parts.dir.display(), parts.rows);
        }
        Ok(parts)
    }

    /// Makes the rows from the first that is not on disk to the last of `total`, one of each prompt, in batches.
    ///
    /// # Errors
    /// Those of `make`; the file system's; a signal.
    pub(crate) fn fill(
        &mut self,
        ctx: &Context,
        total: usize,
        batch: usize,
        mut make: impl FnMut(Range<usize>) -> anyhow::Result<Vec<F::Row>>,
    ) -> anyhow::Result<()> {
        let progress = Progress::new("prompts", Some(total as u64));
        progress.set_position(self.rows as u64);
        while self.rows < total {
            ctx.check_interrupt()?;
            let end = (self.rows + batch).min(total);
            let rows = make(self.rows..end)?;
            ctx.check_unchanged()?;
            self.add(&rows)?;
            progress.set_position(end as u64);
        }
        progress.finish();
        Ok(())
    }

    fn path(&self, first: usize) -> PathBuf {
        self.dir.join(format!("part-{first:08}.parquet"))
    }

    /// Puts a batch on disk.
    ///
    /// # Errors
    /// The file system's.
    fn add(&mut self, rows: &[F::Row]) -> anyhow::Result<()> {
        let path = self.path(self.rows);
        self.write(&path, rows)?;
        self.rows += rows.len();
        self.done.push(path);
        Ok(())
    }

    /// Writes all batches as one file, and returns what is in it.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn merge(&self, path: &Path) -> anyhow::Result<Vec<F::Row>> {
        let mut all = Vec::with_capacity(self.rows);
        for part in &self.done {
            all.extend(self.read(part)?);
        }
        self.write(path, &all)?;
        Ok(all)
    }

    fn write(&self, path: &Path, rows: &[F::Row]) -> anyhow::Result<()> {
        let mut table = TableWriter::create(path, &self.form.columns())?;
        for row in rows {
            table.write_row(&self.form.cells(row))?;
        }
        table.finish()?;
        Ok(())
    }

    fn read(&self, path: &Path) -> anyhow::Result<Vec<F::Row>> {
        let table = TableReader::open(path, &self.form.columns(), "an unfinished run left it")?;
        let damaged = || format!("{}: not a part of this run", path.display());
        let rows = table.map(|cells| self.form.row(cells?).with_context(damaged));
        rows.collect::<anyhow::Result<_>>().hint("start over with --resume never")
    }
}
