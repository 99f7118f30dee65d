//! Prompt rows: what a policy is asked, and how its response can be judged.
//!
//! Parquet with the columns `prompt: utf8` and, where known, `answer`, `task`, `checker` and
//! `messages: utf8`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::columns::{ANSWER, CHECKER, MESSAGES, PROMPT, TASK};
use crate::error::Result;
use crate::rows::{Cell, Column, Kind, TableReader, TableWriter};

/// One prompt.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PromptRow {
    /// What the model is given, rendered: nothing is added before it is tokenised.
    pub prompt: String,
    /// The right answer, where there is one.
    pub answer: Option<String>,
    /// The kind of task.
    pub task: Option<String>,
    /// The rule that judges a response, as the JSON of `data::checker::Checker`.
    pub checker: Option<String>,
    /// The conversation that `prompt` renders, as a JSON list of messages; `None` for a text that is no conversation.
    pub messages: Option<String>,
}

fn columns() -> [Column; 5] {
    [
        Column::required(PROMPT, Kind::Text),
        Column::optional(ANSWER, Kind::Text),
        Column::optional(TASK, Kind::Text),
        Column::optional(CHECKER, Kind::Text),
        Column::optional(MESSAGES, Kind::Text),
    ]
}

/// Writes prompts; the file appears at [`finish`](Self::finish), whole.
pub struct PromptWriter(TableWriter);

impl PromptWriter {
    /// Starts a file at `path`, making missing folders.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self(TableWriter::create(path, &columns())?))
    }

    /// Adds a prompt.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_row(&mut self, row: &PromptRow) -> Result<()> {
        let optional = |text: &Option<String>| Cell::from(text.as_deref());
        self.0.write_row(&[
            Cell::from(row.prompt.as_str()),
            optional(&row.answer),
            optional(&row.task),
            optional(&row.checker),
            optional(&row.messages),
        ])
    }

    /// Finishes the file and returns the number of prompts.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn finish(self) -> Result<u64> {
        self.0.finish()
    }
}

/// Reads prompts in order; any Parquet file with a text column `prompt` will do.
pub struct PromptReader(TableReader);

impl PromptReader {
    /// Opens a file and checks its columns.
    ///
    /// # Errors
    /// If it cannot be read, is not (whole) Parquet, or has no text column `prompt`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let advice = "prompt rows are made by `data-prep`, or by any tool that writes a text column `prompt`";
        Ok(Self(TableReader::open(path, &columns(), advice)?))
    }

    /// How many prompts.
    pub fn num_rows(&self) -> u64 {
        self.0.num_rows()
    }
}

impl Iterator for PromptReader {
    type Item = Result<PromptRow>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut cells = match self.0.next()? {
            Ok(cells) => cells.into_iter().map(Cell::into_text),
            Err(e) => return Some(Err(e)),
        };
        let mut take = || cells.next().flatten();
        Some(Ok(PromptRow {
            prompt: take().unwrap_or_default(),
            answer: take(),
            task: take(),
            checker: take(),
            messages: take(),
        }))
    }
}

/// Writes all of `rows` as a file.
///
/// # Errors
/// Those of the file system.
pub fn write(path: impl AsRef<Path>, rows: &[PromptRow]) -> Result<()> {
    let mut writer = PromptWriter::create(path)?;
    rows.iter().try_for_each(|row| writer.write_row(row))?;
    writer.finish().map(|_| ())
}

/// Reads a whole file of prompts.
///
/// # Errors
/// As [`PromptReader::open`], or if a row is bad.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<PromptRow>> {
    PromptReader::open(path)?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples() -> Vec<PromptRow> {
        vec![
            PromptRow {
                prompt: "민수의 고양이는 무슨 색인가요?".to_owned(),
                answer: Some("검은색".to_owned()),
                task: Some("fact".to_owned()),
                checker: Some(r#"{"exact":{"answer":"검은색"}}"#.to_owned()),
                messages: Some(r#"[{"role":"user","content":"무슨 색?"}]"#.to_owned()),
            },
            PromptRow { prompt: "Sort: 3 1 2".to_owned(), ..PromptRow::default() },
        ]
    }

    #[test]
    fn prompts_come_back_as_they_went() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prompts.parquet");
        write(&path, &examples()).unwrap();
        assert_eq!(read(&path).unwrap(), examples());
        assert_eq!(PromptReader::open(&path).unwrap().num_rows(), 2);
    }

    #[test]
    fn another_tools_file_with_only_a_prompt_column_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.parquet");
        let mut table =
            TableWriter::create(&path, &[Column::required("prompt", Kind::Text)]).unwrap();
        table.write_row(&["hi".into()]).unwrap();
        table.finish().unwrap();
        let expected = PromptRow { prompt: "hi".to_owned(), ..PromptRow::default() };
        assert_eq!(read(&path).unwrap(), vec![expected]);
    }

    #[test]
    fn a_file_without_prompts_says_what_it_has_and_who_makes_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.parquet");
        TableWriter::create(&path, &[Column::required("text", Kind::Text)])
            .unwrap()
            .finish()
            .unwrap();
        assert_eq!(
            read(&path).unwrap_err().to_string(),
            format!(
                "{}: no column `prompt` of type utf8; it has (text: Utf8); prompt rows are made by \
                 `data-prep`, or by any tool that writes a text column `prompt`",
                path.display()
            )
        );
    }
}
