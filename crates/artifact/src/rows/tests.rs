use super::*;

fn columns() -> Vec<Column> {
    vec![
        Column::required("prompt", Kind::Text),
        Column::optional("response", Kind::Text),
        Column::optional("score", Kind::Float32),
        Column::optional("loss", Kind::Float64),
        Column::optional("step", Kind::Int),
        Column::optional("right", Kind::Bool),
    ]
}

fn row(at: i64) -> Vec<Cell> {
    if at % 3 == 0 {
        return vec![
            format!("질문 {at}").into(),
            Cell::Null,
            Cell::Null,
            Cell::Null,
            Cell::Null,
            Cell::Null,
        ];
    }
    vec![
        format!("question {at}").into(),
        Some("답\n\"quoted\"").into(),
        (at as f64 / 2.0).into(),
        (at as f64 / 3.0).into(),
        at.into(),
        (at % 2 == 0).into(),
    ]
}

fn write(path: &Path, rows: i64) -> u64 {
    let mut writer = TableWriter::create(path, &columns()).unwrap();
    (0..rows).for_each(|at| writer.write_row(&row(at)).unwrap());
    writer.finish().unwrap()
}

#[test]
fn rows_come_back_as_they_went_across_groups_and_batches() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    let n = GROUP_ROWS as i64 + 300;
    assert_eq!(write(&path, n), n as u64);
    let reader = TableReader::open(&path, &columns(), "").unwrap();
    assert_eq!(reader.num_rows(), n as u64);
    assert_eq!(reader.column_names(), ["prompt", "response", "score", "loss", "step", "right"]);
    assert_eq!(reader.source.num_groups(), 2);
    let back: Vec<_> = reader.map(Result::unwrap).collect();
    assert!(back == (0..n).map(row).collect::<Vec<_>>());
    // A reader may ask for fewer, in another order, and for optional ones that are not there.
    let some = [Column::optional("margin", Kind::Float32), Column::required("prompt", Kind::Text)];
    let second = TableReader::open(&path, &some, "").unwrap().nth(1).unwrap().unwrap();
    assert_eq!(second, [Cell::Null, "question 1".into()]);
}

#[test]
fn long_texts_make_groups_of_bounded_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    let mut writer = TableWriter::create(&path, &[Column::required("text", Kind::Text)]).unwrap();
    let long = "가".repeat(1 << 20);
    (0..6).for_each(|_| writer.write_row(&[long.as_str().into()]).unwrap());
    writer.finish().unwrap();
    let reader = TableReader::open(&path, &[Column::required("text", Kind::Text)], "").unwrap();
    assert_eq!(reader.source.num_groups(), 2);
    assert!(reader.map(Result::unwrap).all(|row| row[0].as_text() == Some(&long)));
}

#[test]
fn the_same_rows_make_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = |name: &str| {
        let path = dir.path().join(name);
        write(&path, 500);
        fs_err::read(path).unwrap()
    };
    assert!(bytes("a") == bytes("b"));
}

#[test]
fn cells_that_do_not_fit_name_row_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    let columns = [Column::required("prompt", Kind::Text), Column::optional("step", Kind::Int)];
    let mut writer = TableWriter::create(&path, &columns).unwrap();
    writer.write_row(&["a".into(), 1.into()]).unwrap();
    let mut fails = |cells: &[Cell]| {
        writer
            .write_row(cells)
            .unwrap_err()
            .to_string()
            .replace(&path.display().to_string(), "PATH")
    };
    assert_eq!(fails(&["a".into()]), "PATH: row 1: has 1 values for 2 columns");
    assert_eq!(fails(&[Cell::Null, 1.into()]), "PATH: row 1: column `prompt` needs utf8, got Null");
    assert_eq!(
        fails(&["a".into(), 1.5.into()]),
        "PATH: row 1: column `step` needs int64, got Float(1.5)"
    );
    assert_eq!(writer.finish().unwrap(), 1);
}

#[test]
fn missing_columns_and_values_are_named_when_reading() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    write(&path, 3);
    let fails = |column| {
        let error = TableReader::open(&path, &[column], "made by `reward`").err().unwrap();
        error.to_string().replace(&path.display().to_string(), "PATH")
    };
    let has = "it has (prompt: Utf8, response: Utf8, score: Float32, loss: Float64, step: Int64, right: Boolean)";
    assert_eq!(
        fails(Column::required("chosen", Kind::Text)),
        format!("PATH: no column `chosen` of type utf8; {has}; made by `reward`")
    );
    // An optional column may be absent, but not of another type.
    assert_eq!(
        fails(Column::optional("prompt", Kind::Float32)),
        format!("PATH: no column `prompt` of type float32; {has}; made by `reward`")
    );
    let strict = [Column::required("response", Kind::Text)];
    let mut reader = TableReader::open(&path, &strict, "").unwrap();
    let error = reader.next().unwrap().unwrap_err().to_string();
    assert_eq!(error, format!("{}: row 0: column `response` has no value", path.display()));
    assert!(reader.next().is_none(), "nothing after an error");
}

#[test]
fn other_tools_types_are_read() {
    use arrow::array::{
        DictionaryArray, Float64Array, Int32Array, LargeStringArray, StringViewArray,
    };
    use arrow::datatypes::Int32Type;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    let arrays: Vec<(&str, ArrayRef)> = vec![
        ("large", Arc::new(LargeStringArray::from(vec!["가", "b"]))),
        ("view", Arc::new(StringViewArray::from(vec!["c", "d"]))),
        ("dictionary", Arc::new(DictionaryArray::<Int32Type>::from_iter(["e", "e"]))),
        ("score", Arc::new(Float64Array::from(vec![0.5, 1.5]))),
        ("step", Arc::new(Int32Array::from(vec![7, 8]))),
    ];
    let batch = RecordBatch::try_from_iter(arrays).unwrap();
    let mut sink = ParquetSink::create(&path, batch.schema()).unwrap();
    sink.write_group(&batch).unwrap();
    sink.finish(None).unwrap();
    let columns = [
        Column::required("large", Kind::Text),
        Column::required("view", Kind::Text),
        Column::required("dictionary", Kind::Text),
        Column::required("score", Kind::Float32),
        Column::required("step", Kind::Int),
    ];
    let rows: Vec<_> =
        TableReader::open(&path, &columns, "").unwrap().map(Result::unwrap).collect();
    assert_eq!(rows[0], ["가".into(), "c".into(), "e".into(), 0.5.into(), Cell::Int(7)]);
    assert_eq!(rows[1], ["b".into(), "d".into(), "e".into(), 1.5.into(), Cell::Int(8)]);
    assert_eq!(rows[1][4].as_f64(), Some(8.0));
}

#[test]
fn a_truncated_table_is_an_error_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    write(&path, 100);
    let good = fs_err::read(&path).unwrap();
    fs_err::write(&path, &good[..good.len() - 100]).unwrap();
    let error = TableReader::open(&path, &columns(), "").err().unwrap().to_string();
    assert!(
        error.starts_with(&format!("{}: not a readable Parquet file (", path.display())),
        "{error}"
    );
}

#[test]
fn the_columns_of_any_table_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    write(&path, 4);
    let found = TableReader::columns_of(&path).unwrap();
    let kinds: Vec<(&str, Kind)> = found.iter().map(|c| (c.name.as_str(), c.kind)).collect();
    let wanted = [
        ("prompt", Kind::Text),
        ("response", Kind::Text),
        ("score", Kind::Float64),
        ("loss", Kind::Float64),
        ("step", Kind::Int),
        ("right", Kind::Bool),
    ];
    assert_eq!(kinds, wanted);
    assert!(found.iter().all(|column| !column.required));
    fs_err::write(&path, "no table").unwrap();
    let error = TableReader::columns_of(&path).unwrap_err().to_string();
    assert!(error.contains("t.parquet: not a readable Parquet file"), "{error}");
}
