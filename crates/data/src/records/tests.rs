use std::io::Write as _;

use fs_err as fs;
use serde_json::json;
use tempfile::TempDir;

use super::*;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self) -> String {
        self.0.path().to_str().unwrap().to_owned()
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn read_with(spec: &str, options: &ReadOptions) -> Vec<Result<(u64, Value), String>> {
    let source = match Source::open(&[spec], options) {
        Ok(source) => source,
        Err(error) => return vec![Err(error.to_string())],
    };
    source
        .records()
        .map(|item| {
            item.map(|record| (record.origin.row, Value::Object(record.fields)))
                .map_err(|error| error.to_string())
        })
        .collect()
}

fn read(spec: &str) -> Vec<Result<(u64, Value), String>> {
    read_with(spec, &ReadOptions::default())
}

/// The only error, with the folder's name left out.
fn error(folder: &Folder, spec: &str) -> String {
    error_with(folder, spec, &ReadOptions::default())
}

fn error_with(folder: &Folder, spec: &str, options: &ReadOptions) -> String {
    let errors: Vec<String> =
        read_with(spec, options).into_iter().filter_map(Result::err).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors[0].replace(&format!("{}/", folder.path()), "").replace(&folder.path(), "DIR")
}

fn values(spec: &str) -> Vec<Value> {
    read(spec).into_iter().map(|item| item.unwrap().1).collect()
}

#[test]
fn text_is_a_document_paragraphs_or_lines() {
    let folder = Folder::new();
    let path = folder.write("a.txt", "\u{FEFF}첫 줄\r\n둘째 줄\r\n\r\n\r\nthird\n");
    assert_eq!(read(&path), [Ok((1, json!({"text": "첫 줄\n둘째 줄\n\n\nthird\n"})))]);
    let unit = |text_unit| read_with(&path, &ReadOptions { text_unit, ..ReadOptions::default() });
    assert_eq!(
        unit(TextUnit::Paragraph),
        [Ok((1, json!({"text": "첫 줄\n둘째 줄"}))), Ok((5, json!({"text": "third"})))]
    );
    assert_eq!(
        unit(TextUnit::Line),
        [
            Ok((1, json!({"text": "첫 줄"}))),
            Ok((2, json!({"text": "둘째 줄"}))),
            Ok((5, json!({"text": "third"})))
        ]
    );
}

#[test]
fn text_ends_at_a_line_of_its_own() {
    let folder = Folder::new();
    let path =
        folder.write("a.txt", "<end>\none\n\nstill <end> one\n  <end>\r\n<end>\n둘\n<end>\nrest");
    let text_unit = TextUnit::Until("<end>".to_owned());
    assert_eq!(
        read_with(&path, &ReadOptions { text_unit, ..ReadOptions::default() }),
        [
            Ok((2, json!({"text": "one\n\nstill <end> one"}))),
            Ok((7, json!({"text": "둘"}))),
            Ok((9, json!({"text": "rest"})))
        ]
    );
}

#[test]
fn a_long_document_comes_in_pieces_cut_at_line_breaks() {
    let folder = Folder::new();
    let line = format!("{}\n", "가나다 ".repeat(1000));
    let count = DOCUMENT_PIECE_BYTES / line.len() * 2 + 10;
    let path = folder.write("big.txt", line.repeat(count));
    let texts = values(&path);
    assert_eq!(texts.len(), 3);
    let whole: String = texts.iter().map(|text| text["text"].as_str().unwrap()).collect();
    assert_eq!(whole, line.repeat(count));
}

#[test]
fn json_lines_keep_field_order_and_skip_blank_lines() {
    let folder = Folder::new();
    let path =
        folder.write("a.jsonl", "\n{\"b\": 1, \"a\": \"나비\"}\n  \n{\"b\": [1, {\"c\": null}]}");
    assert_eq!(
        read(&path),
        [Ok((2, json!({"b": 1, "a": "나비"}))), Ok((4, json!({"b": [1, {"c": null}]})))]
    );
    let record = Source::open(&[&path], &ReadOptions::default()).unwrap().records().next();
    assert_eq!(record.unwrap().unwrap().fields.keys().collect::<Vec<_>>(), ["b", "a"]);
}

#[test]
fn json_arrays_sequences_and_nested_arrays_are_streamed() {
    let folder = Folder::new();
    let array = "[ {\"a\": \"x ] } \\\" y\"} ,\n{\"a\": [1, [2]]},{}]\n";
    let expected = [json!({"a": "x ] } \" y"}), json!({"a": [1, [2]]}), json!({})];
    for name in ["a.json", "array.jsonl"] {
        assert_eq!(values(&folder.write(name, array)), expected, "{name}");
    }
    let path = folder.write("sequence.json", "{\n \"a\": 1\n}\n{\"a\": 2}{\"a\": 3}");
    assert_eq!(values(&path), [json!({"a": 1}), json!({"a": 2}), json!({"a": 3})]);
    let nested = r#"{"version": "KorQuAD_v1.0", "meta": {"data": [1]}, "data": [{"title": "임종석"}, {}], "end": 1}"#;
    let path = folder.write("nested.json", nested);
    let options = ReadOptions { field: Some("data".to_owned()), ..ReadOptions::default() };
    assert_eq!(
        read_with(&path, &options),
        [Ok((1, json!({"title": "임종석"}))), Ok((2, json!({})))]
    );
}

#[test]
fn the_values_of_an_object_are_records_where_that_is_asked_for() {
    let folder = Folder::new();
    let keyed = |field: Option<&str>| ReadOptions {
        field: field.map(str::to_owned),
        by_key: true,
        ..ReadOptions::default()
    };
    let path =
        folder.write("a.json", "{ \"1\": {\"q\": \"}, \\\"\"} ,\n\"둘\" :{\"q\": {\"r\": []}}}\n");
    let expected = [Ok((1, json!({"q": "}, \""}))), Ok((2, json!({"q": {"r": []}})))];
    assert_eq!(read_with(&path, &keyed(None)), expected);
    let path = folder
        .write("b.json", r#"{"data": [], "all": {"x": {"n": 1}, "y": 2, "z": {}}, "end": 0}"#);
    let found = read_with(&path, &keyed(Some("all")));
    assert_eq!([&found[0], &found[2]], [&Ok((1, json!({"n": 1}))), &Ok((3, json!({})))]);
    let message = found[1].as_ref().unwrap_err();
    assert!(message.contains(":2: expected a JSON object but found a number"), "{message}");

    for (text, field, expected) in [
        ("[{}]", None, "expected `{`, because by_key is set, but found `[`"),
        ("{\"a\": {}, }", None, "expected a record but found `}`"),
        ("{\"a\": {}, 3}", None, "expected a key but found `3`"),
        ("{\"a\": {} ]", None, "expected `,` or `}` but found `]`"),
        ("{\"a\" {}}", None, "expected `:` but found `{`"),
        ("{\"a\": {}", None, "the file ends inside this record"),
        ("{\"a\": []}", Some("a"), "no top-level key `a` with an object in it; top-level keys: a"),
    ] {
        let found = read_with(&folder.write("bad.json", text), &keyed(field));
        let error = found.last().unwrap().as_ref().unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn csv_and_tsv_follow_their_quoting_rules() {
    let folder = Folder::new();
    let path = folder.write(
        "a.csv",
        "\u{FEFF}Q,A,\r\n\r\n\"안녕, 나비\",\"두 줄\r\n답 \"\"야옹\"\"\",0\r\nx,,1\r\n",
    );
    assert_eq!(
        read(&path),
        [
            Ok((3, json!({"Q": "안녕, 나비", "A": "두 줄\r\n답 \"야옹\"", "column_3": "0"}))),
            Ok((5, json!({"Q": "x", "A": "", "column_3": "1"})))
        ]
    );
    let path = folder.write("a.tsv", "a\tb\n\"x\ty\"\n");
    assert_eq!(values(&path), [json!({"a": "\"x", "b": "y\""})]);
    let columns = Some(vec!["old".to_owned(), "new".to_owned()]);
    let options = ReadOptions { columns, format: Some(FileFormat::Tsv), ..ReadOptions::default() };
    let path = folder.write("sae.txt", "\u{FEFF}긴 말\t짧은 말\r\n");
    assert_eq!(read_with(&path, &options), [Ok((1, json!({"old": "긴 말", "new": "짧은 말"})))]);
}

#[test]
fn parquet_rows_become_records() {
    use ::parquet::arrow::ArrowWriter;
    use arrow::array::{
        ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int64Array, LargeListArray,
        LargeStringArray, ListArray, RecordBatch, StringArray, StringViewArray, StructArray,
    };
    use arrow::datatypes::{DataType, Field, Int32Type};

    let text: ArrayRef = Arc::new(StringArray::from(vec![Some("나비"), None]));
    let number: ArrayRef = Arc::new(Int64Array::from(vec![-3, i64::MAX]));
    let real: ArrayRef = Arc::new(Float64Array::from(vec![0.5, f64::NAN]));
    let yes: ArrayRef = Arc::new(BooleanArray::from(vec![true, false]));
    let list: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
        Some(vec![Some(1), None]),
        Some(vec![]),
    ]));
    let long: ArrayRef = Arc::new(LargeListArray::from_iter_primitive::<Int32Type, _, _>(vec![
        Some(vec![Some(2)]),
        None,
    ]));
    let large: ArrayRef = Arc::new(LargeStringArray::from(vec![Some("큰 글"), None]));
    let view: ArrayRef = Arc::new(StringViewArray::from(vec![None, Some("a view")]));
    let tag: ArrayRef = Arc::new(DictionaryArray::<Int32Type>::from_iter([Some("뜻"), None]));
    let fields = StructArray::from(vec![
        (Arc::new(Field::new("role", DataType::Utf8, true)), Arc::clone(&text)),
        (Arc::new(Field::new("n", DataType::Int64, true)), Arc::clone(&number)),
    ]);
    let batch = RecordBatch::try_from_iter(vec![
        ("text", text),
        ("number", number),
        ("real", real),
        ("yes", yes),
        ("list", list),
        ("message", Arc::new(fields) as ArrayRef),
        ("long", long),
        ("large", large),
        ("view", view),
        ("tag", tag),
    ])
    .unwrap();
    let folder = Folder::new();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let path = folder.write("a.parquet", &bytes);
    assert_eq!(
        values(&path),
        [
            json!({"text": "나비", "number": -3, "real": 0.5, "yes": true, "list": [1, null], "message": {"role": "나비", "n": -3},
                "long": [2], "large": "큰 글", "view": null, "tag": "뜻"}),
            json!({"text": null, "number": i64::MAX, "real": null, "yes": false, "list": [], "message": {"role": null, "n": i64::MAX},
                "long": null, "large": null, "view": "a view", "tag": null}),
        ]
    );
    folder.write("cut.parquet", &bytes[..bytes.len() - 9]);
    let message = error(&folder, &format!("{}/cut.parquet", folder.path()));
    assert!(
        message.starts_with("cut.parquet: cannot read as Parquet: ")
            && message.ends_with("; the file may be damaged: fetch it again"),
        "{message}"
    );
}

#[test]
fn parquet_columns_of_other_types_are_refused() {
    use ::parquet::arrow::ArrowWriter;
    use arrow::array::{ArrayRef, BinaryArray, RecordBatch};

    let bytes: ArrayRef = Arc::new(BinaryArray::from(vec![&b"x"[..]]));
    let batch = RecordBatch::try_from_iter(vec![("image", bytes)]).unwrap();
    let folder = Folder::new();
    let mut out = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut out, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let path = folder.write("a.parquet", out);
    assert_eq!(
        error(&folder, &path),
        "a.parquet: column `image` has type Binary, which is not text, number, boolean, list or \
         struct; leave the column out of the file"
    );
}

#[test]
fn compressed_files_read_the_same_as_plain_ones() {
    let folder = Folder::new();
    let plain = "{\"text\": \"하나\"}\n{\"text\": \"two\"}\n";
    let expected = [json!({"text": "하나"}), json!({"text": "two"})];
    // Two gzip members, as `cat a.gz b.gz` makes them.
    let half = plain.len() / 2 + 1;
    let members = [gzip(&plain.as_bytes()[..half]), gzip(&plain.as_bytes()[half..])].concat();
    assert_eq!(values(&folder.write("a.jsonl.gz", members)), expected);
    let zst = zstd::encode_all(plain.as_bytes(), 0).unwrap();
    assert_eq!(values(&folder.write("a.jsonl.zst", zst)), expected);
}

#[test]
fn damaged_compression_is_an_error_that_says_how_far_it_got() {
    let folder = Folder::new();
    let mut plain = String::new();
    // Different lines, so that the cut file still holds some of them.
    for n in 0..2000 {
        plain.extend(["{\"text\": \"", &(n * 7919 % 10007).to_string(), "\"}\n"]);
    }
    let gz = gzip(plain.as_bytes());
    folder.write("cut.jsonl.gz", &gz[..gz.len() - 20]);
    let items = read(&format!("{}/cut.jsonl.gz", folder.path()));
    let message = items.last().unwrap().clone().unwrap_err();
    let good = items.iter().filter(|item| item.is_ok()).count();
    assert!(good > 0, "the rows before the damage are read");
    let start = format!("cut.jsonl.gz: the gzip data is damaged or cut off after record {good} (");
    assert!(message.contains(&start) && message.ends_with("); fetch the file again"), "{message}");
    let zst = zstd::encode_all(plain.as_bytes(), 0).unwrap();
    let path = folder.write("cut.jsonl.zst", &zst[..zst.len() - 20]);
    let message = read(&path).last().unwrap().clone().unwrap_err();
    assert!(
        message.contains("cut.jsonl.zst: the zstd data is damaged or cut off after"),
        "{message}"
    );
    let path = folder.write("not.jsonl.gz", "{\"text\": \"plain\"}\n");
    let message = error(&folder, &path);
    assert!(
        message.starts_with("not.jsonl.gz: the gzip data is damaged or cut off after record 0"),
        "{message}"
    );
}

#[test]
fn bad_rows_are_named_and_the_rows_after_them_are_read() {
    let folder = Folder::new();
    let path =
        folder.write("a.jsonl", b"{\"a\": 1}\n{\"a\": \"\xFF\"}\n{\"a\": }\n7\n{\"a\": 2}\n");
    let items = read(&path);
    assert_eq!(items.len(), 5);
    assert_eq!((&items[0], &items[4]), (&Ok((1, json!({"a": 1}))), &Ok((5, json!({"a": 2})))));
    let message =
        |n: usize| items[n].clone().unwrap_err().replace(&format!("{}/", folder.path()), "");
    assert_eq!(
        message(1),
        "a.jsonl:2: invalid UTF-8 at byte 7 of the row; convert the file to UTF-8, or set \
         `bad_records = \"skip\"`"
    );
    assert_eq!(
        message(2),
        "a.jsonl:3: not valid JSON: expected value at line 1 column 7; mend the row, or set \
         `bad_records = \"skip\"`"
    );
    assert_eq!(
        message(3),
        "a.jsonl:4: expected a JSON object but found a number; each record must be an object such as \
         {\"text\": \"...\"}"
    );
    let path = folder.write("b.json", "[{\"a\": 1}, {\"a\": tru}, {\"a\": 3}]");
    let items = read(&path);
    assert_eq!(items.len(), 3);
    assert!(items[1].clone().unwrap_err().contains("b.json:2: not valid JSON"));
    let path = folder.write("c.csv", "a,b\n1,2\n3\n4,5,6\n7,8\n");
    let items = read(&path);
    assert_eq!(items[3], Ok((5, json!({"a": "7", "b": "8"}))));
    assert!(items[1].clone().unwrap_err().ends_with(
        "c.csv:3: 1 fields where the header has 2; quote fields that contain the separator, or set \
         `bad_records = \"skip\"`"
    ));
    assert!(items[2].clone().unwrap_err().contains("c.csv:4: 3 fields where the header has 2"));
    let path = folder.write("d.txt", b"ok\n\xC3\n");
    assert!(error(&folder, &path).starts_with("d.txt:2: invalid UTF-8 at byte 0 of the row"));
}

#[test]
fn broken_structure_ends_the_reading() {
    let folder = Folder::new();
    let case = |name: &str, text: &str| error(&folder, &folder.write(name, text));
    assert_eq!(
        case("a.json", "[{\"a\": 1}, {\"a\": "),
        "a.json:2: the file ends inside this record; it is cut off: fetch it again"
    );
    assert_eq!(
        case("b.json", "[{\"a\": 1}"),
        "b.json:2: the file ends inside this record; it is cut off: fetch it again"
    );
    let structure = |expected: &str, found: &str| {
        format!(
            "expected {expected} but found `{found}`; the file is not a JSON array or a sequence of JSON objects"
        )
    };
    assert_eq!(case("c.json", "[{} {}]"), format!("c.json:1: {}", structure("`,` or `]`", "{")));
    assert_eq!(case("d.json", "[{},]"), format!("d.json:1: {}", structure("a record", "]")));
    assert_eq!(case("e.json", "[{}] x"), format!("e.json:1: {}", structure("the end", "x")));
    assert_eq!(case("f.json", "hello"), format!("f.json:1: {}", structure("`{`", "h")));
    let field = ReadOptions { field: Some("rows".to_owned()), ..ReadOptions::default() };
    let path = folder.write("g.json", "{\"a\": 1, \"data\": []}");
    assert_eq!(
        error_with(&folder, &path, &field),
        "g.json: no top-level key `rows` with an array in it; top-level keys: a, data"
    );
    assert_eq!(
        case("h.csv", "a,b,a\n1,2,3\n"),
        "h.csv: the header names column `a` twice; rename one, or give names with `columns`"
    );
}

#[test]
fn files_come_in_the_order_asked_for() {
    let folder = Folder::new();
    for (name, n) in [("b.jsonl", 2), ("a.jsonl", 1), ("sub/c.jsonl", 3)] {
        folder.write(name, format!("{{\"n\": {n}}}\n"));
    }
    folder.write("README.md", "about the data");
    folder.write("notes.pdf", "not data");
    folder.write(".hidden.jsonl", "{\"n\": 9}\n");
    let order = |specs: &[String]| -> Vec<u64> {
        let source = Source::open(specs, &ReadOptions::default()).unwrap();
        source.records().map(|record| record.unwrap().fields["n"].as_u64().unwrap()).collect()
    };
    let root = folder.path();
    assert_eq!(order(std::slice::from_ref(&root)), [1, 2, 3]);
    assert_eq!(order(&[format!("{root}/*.jsonl")]), [9, 1, 2]);
    assert_eq!(order(&[format!("{root}/b.jsonl"), root.clone()]), [2, 1, 3]);
    assert_eq!(order(&[format!("{root}/**/c.jsonl")]), [3]);
}

#[test]
fn one_file_of_many_can_be_read_alone_and_be_empty() {
    let folder = Folder::new();
    folder.write("a.jsonl", "{\"n\": 1}\n{\"n\": 2}\n");
    folder.write("b.jsonl", "");
    folder.write("c.jsonl", "{\"n\": 3}\n");
    let source = Source::open(&[folder.path()], &ReadOptions::default()).unwrap();
    let numbers = |file| -> Vec<u64> {
        source.records_of(file).map(|one| one.unwrap().fields["n"].as_u64().unwrap()).collect()
    };
    assert_eq!([numbers(0), numbers(1), numbers(2)], [vec![1, 2], vec![], vec![3]]);
    assert!(source.empty().to_string().contains("no records in 3 file(s)"));
}

#[test]
fn what_cannot_be_found_is_named() {
    let folder = Folder::new();
    let root = folder.path();
    assert_eq!(
        error(&folder, &format!("{root}/none.txt")),
        "`none.txt`: no such file or folder, and no file matches it as a pattern; check the path"
    );
    assert!(error(&folder, "a[").starts_with("`a[`: not a valid file pattern: "));
    assert_eq!(
        error(&folder, &root),
        "DIR: the folder has no .txt, .jsonl, .json, .csv, .tsv or .parquet file (.gz and .zst \
         allowed); name the files with a pattern such as `*.ext` and set `format`"
    );
    let path = folder.write("data.bin", "x");
    assert_eq!(
        error(&folder, &path),
        "data.bin: the name does not tell the format; set `format` to one of text, jsonl, json, csv, \
         tsv, parquet"
    );
    for (name, text) in
        [("a.txt", " \n"), ("b.jsonl", "\n"), ("c.json", "[]"), ("d.csv", "a,b\n"), ("e.json", "")]
    {
        let path = folder.write(name, text);
        assert_eq!(
            error(&folder, &path),
            format!("{name}: no records in 1 file(s); the data set is empty")
        );
    }
}
