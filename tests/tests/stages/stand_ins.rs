//! Small models and data in the forms that the shipped pipelines read, Korean and English.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use temper_tests::binaries::Stage;
use temper_tests::{corpus, fixtures};

use super::copy;

/// A tiny GPT-2 with a byte-level tokenizer.
pub(crate) const GPT2: (&str, &str) = (
    "byte-level",
    "model_type = \"gpt2\"\nn_embd = 32\nn_layer = 2\nn_head = 2\nn_positions = 1024\n",
);

/// A tiny Llama with a tokenizer as Llama 2's.
pub(crate) const LLAMA: (&str, &str) = (
    "metaspace",
    "model_type = \"llama\"\nhidden_size = 32\nintermediate_size = 64\nnum_hidden_layers = 2\n\
     num_attention_heads = 2\nmax_position_embeddings = 1024\n",
);

/// Puts a model of nearly random weights at `models/<name>` in `dir`, as one would from a hub.
pub(crate) fn model(dir: &Path, name: &str, (tokenizer, config): (&str, &str)) {
    let made = tempfile::tempdir().unwrap();
    let tokenizer = fixtures::parity(format!("tokenizers/{tokenizer}"));
    corpus::write_jsonl(&made.path().join("texts.jsonl"), &corpus::texts(40)).unwrap();
    let data = format!(
        "seed = 1\nout = \"data\"\n[tokenizer.existing]\npath = \"{}\"\n[datasets.text]\nkind = \"text\"\n\
         sources = [\"texts.jsonl\"]\nmax_length = 256\n",
        tokenizer.display()
    );
    let pretrain = format!(
        "seed = 1\nout = \"model\"\n[model.config]\n{config}[data]\ntrain = [\"data/data/text/train.parquet\"]\n\
         [train]\nsteps = 1\nbatch_size.sequences = 4\nmicro_batch_tokens = 512\n\
         optimizer.learning_rate = 1e-3\nschedule.constant = {{}}\n"
    );
    for (program, config) in [("data-prep", data), ("pretrain", pretrain)] {
        fs_err::write(made.path().join(format!("{program}.toml")), config).unwrap();
        let file = format!("{program}.toml");
        Stage::new(program, made.path()).args(["--config", &file]).succeed().unwrap();
    }
    let there = dir.join("models").join(name);
    copy(&made.path().join("model/model"), &there);
    if name == "gpt2" {
        // That on the hub does not name its special tokens.
        fs_err::write(there.join("tokenizer_config.json"), "{\"model_max_length\": 1024}").unwrap();
    }
}

/// Questions with answers.
fn asked(count: usize) -> Vec<(String, String)> {
    let turn =
        |record: &Value, at: usize| record["messages"][at]["content"].as_str().unwrap().to_owned();
    corpus::conversations(count).iter().map(|record| (turn(record, 0), turn(record, 1))).collect()
}

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join("data").join(name);
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(path, text).unwrap();
}

/// Alpaca's form, one JSON array, with an `input` in every second record.
pub(crate) fn alpaca(dir: &Path, name: &str, instruction: &str) {
    let record = |(row, (question, answer)): (usize, (String, String))| {
        if row.is_multiple_of(2) {
            json!({"instruction": question, "input": "", "output": answer})
        } else {
            json!({"instruction": instruction, "input": question, "output": answer})
        }
    };
    let records: Vec<Value> = asked(60).into_iter().enumerate().map(record).collect();
    write(dir, name, &serde_json::to_string_pretty(&records).unwrap());
}

/// Rankings of four answers, two of the same rank; and a tree of Open Assistant.
pub(crate) fn rankings(dir: &Path) {
    let mut lines = String::new();
    for (question, answer) in asked(40) {
        let ranked = [(answer.as_str(), 0), ("몰라요.", 1), ("I forgot.", 1), ("", 2)];
        let responses: Vec<Value> = ranked
            .iter()
            .map(|(text, rank)| json!({"text": format!("{text} ."), "rank": rank}))
            .collect();
        writeln!(lines, "{}", json!({"prompt": question, "responses": responses})).unwrap();
    }
    write(dir, "rankings/rankings.jsonl", &lines);
    let reply = |text: &str, rank: u32| json!({"role": "assistant", "text": text, "rank": rank, "replies": []});
    let replies = [reply("서울이에요.", 0), reply("부산?", 1), reply("No.", 2)];
    let tree = json!({"role": "prompter", "text": "한국의 수도는?", "replies": replies});
    write(dir, "rankings/trees.jsonl", &format!("{}\n", json!({"prompt": tree})));
}

/// Pairs as columns, and as transcripts of hh-rlhf; one line that is no JSON.
pub(crate) fn preferences(dir: &Path) {
    corpus::write_jsonl(&dir.join("data/preferences/pairs.jsonl"), &corpus::preferences(60))
        .unwrap();
    let mut lines = String::new();
    for (question, answer) in asked(20) {
        let said = |answer: &str| format!("\n\nHuman: 안녕! {question}\n\nAssistant: {answer}");
        writeln!(lines, "{}", json!({"chosen": said(&answer), "rejected": said("흥.")})).unwrap();
    }
    write(dir, "preferences/hh.jsonl", &format!("{lines}not JSON\n"));
}

/// `MedQuAD`'s files: several pairs each, entities, a pair without its answer.
pub(crate) fn medquad(dir: &Path) {
    for (number, pairs) in asked(40).chunks(4).enumerate() {
        let mut text =
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Document id=\"1\" source=\"NINDS\">\n\
                        <Focus>Colds &amp; 감기</Focus>\n<QAPairs>\n"
                .to_owned();
        for (pair, (question, answer)) in pairs.iter().enumerate() {
            let answer = if number == 0 && pair == 0 {
                "<Answer/>".to_owned()
            } else {
                format!("<Answer>{answer} It doesn&apos;t hurt.\n 푹\n쉬세요.</Answer>")
            };
            write!(
                text,
                "\t<QAPair pid=\"{pair}\">\n\t\t<Question qid=\"{number}-{pair}\" qtype=\"symptoms\">{question} \
                 &amp;c ?</Question>\n\t\t{answer}\n\t</QAPair>\n"
            )
            .unwrap();
        }
        write(
            dir,
            &format!("medquad/6_NINDS_QA/{number:07}.xml"),
            &(text + "</QAPairs>\n</Document>\n"),
        );
    }
}

/// One column a turn; the first rows of a conversation have fewer.
pub(crate) fn dialogues(dir: &Path) {
    let columns = [
        "response",
        "context",
        "context/0",
        "context/1",
        "context/2",
        "context/3",
        "context/4",
        "context/5",
    ];
    let turns: Vec<String> =
        asked(40).into_iter().flat_map(|(question, answer)| [question, answer]).collect();
    let mut text = columns.join(",");
    for reply in 1..turns.len() {
        let cells = (0..columns.len()).map(|back| {
            let turn = reply.checked_sub(back).map_or("", |at| &turns[at]);
            format!("\"{turn}\"")
        });
        write!(text, "\r\n{}", cells.collect::<Vec<_>>().join(",")).unwrap();
    }
    write(dir, "dialogues/dialogues.csv", &text);
}

/// Running text.
pub(crate) fn text(dir: &Path) {
    let records = corpus::texts(80);
    let lines: Vec<&str> = records.iter().map(|record| record["text"].as_str().unwrap()).collect();
    write(dir, "text/stories.txt", &lines[..40].join("\n"));
    write(dir, "text/이야기.txt", &lines[40..].join("\n"));
}
