//! What a person sees on the page and does with it.

use std::path::PathBuf;

use browser::{Page, View};
use serde_json::{Value, json};

use crate::fixture::{Yard, data, opened};

const WIDE: View = View { width: 1280, dark: false };

fn open(yard: &Yard) -> (Page, PathBuf) {
    let file = yard.page("quick = [\"runs/quick\"]");
    (opened(&file, WIDE), file)
}

/// The text of what a selector finds first.
#[track_caller]
fn text(page: &mut Page, selector: &str) -> String {
    let text = page.eval(&format!("document.querySelector({selector:?})?.textContent"));
    text.as_str().unwrap_or_else(|| panic!("nothing is {selector}")).replace('\u{202f}', " ")
}

#[track_caller]
fn count(page: &mut Page, selector: &str) -> u64 {
    page.eval(&format!("document.querySelectorAll({selector:?}).length")).as_u64().unwrap()
}

#[test]
fn it_draws_without_a_complaint_and_asks_for_nothing() {
    let (mut page, file) = open(&Yard::quick());
    assert_eq!(page.complaints(), [""; 0]);
    assert_eq!(page.requests(), [format!("file://{}", file.display())]);
    assert_eq!(page.eval("window.hacked"), Value::Null);
    assert_eq!(count(&mut page, "img, main b, iframe"), 0);
    assert_eq!(text(&mut page, "h1"), "시험 & <test>");
    assert_eq!(text(&mut page, "#summary"), "6 stages · 6 min 7 s of work · 1 test");
}

#[test]
fn the_graph_has_a_node_a_run_and_an_edge_for_each_that_is_read() {
    let yard = Yard::quick();
    let (mut page, file) = open(&yard);
    let runs = data(&file)["runs"].clone();
    let runs = runs.as_array().unwrap();
    let edges: usize = runs.iter().map(|run| run["inputs"].as_array().unwrap().len()).sum();
    assert_eq!(count(&mut page, ".graph a.node"), runs.len() as u64);
    assert_eq!(count(&mut page, ".graph path.edge"), edges as u64);
    let overlaps = "(() => { const boxes = [...document.querySelectorAll('.graph .box')].map(b => b.getBoundingClientRect());
        return boxes.some((a, i) => boxes.some((b, j) => i < j && a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)); })()";
    assert_eq!(page.eval(overlaps), false, "nodes lie over each other");
    assert_eq!(count(&mut page, "#stage-table tbody tr"), runs.len() as u64);
    let peft = text(&mut page, "#stage-table tbody tr:nth-child(4)");
    for part in ["peft", "fine-tuning", "3.40 M", "68 000", "1 min 1 s", "700 MiB"] {
        assert!(peft.contains(part), "{part:?} is not in {peft:?}");
    }
    page.eval("location.hash = document.querySelector('.graph a.node').getAttribute('href')");
    page.wait_for("document.querySelector('details.run').open");
}

#[test]
fn curves_have_a_mark_for_every_point() {
    let (mut page, _) = open(&Yard::quick());
    let charts = "#curves .charts";
    // pretrain, sft and peft have a loss; ppo has none.
    assert_eq!(count(&mut page, &format!("{charts} > figure")), 3);
    let pretrain = format!("{charts} [data-run=pretrain]");
    let corners = format!(
        "document.querySelector({:?}).getAttribute('d').match(/[ML]/g).length",
        format!("{pretrain} .curve path")
    );
    assert_eq!(page.eval(&corners), 40);
    assert_eq!(count(&mut page, &format!("{pretrain} .points-of circle")), 4);
    let places = page.eval(&format!(
        "[...document.querySelectorAll({:?})].map(c => Number(c.getAttribute('cy')))",
        format!("{pretrain} .points-of circle")
    ));
    let places: Vec<f64> = places.as_array().unwrap().iter().map(|y| y.as_f64().unwrap()).collect();
    assert!(places.is_sorted(), "a falling loss falls: {places:?}");
    let labels = text(&mut page, &format!("{pretrain} svg"));
    assert!(labels.contains("loss (nats per token)") && labels.contains("step"), "{labels}");
    page.eval("document.querySelector('input[value=\"Score against KL\"]').click()");
    assert_eq!(count(&mut page, &format!("{charts} > figure")), 1);
    assert_eq!(count(&mut page, &format!("{charts} [data-run=ppo] .points-of circle")), 30);
}

#[test]
fn pointing_at_a_curve_shows_its_values_and_so_do_the_arrow_keys() {
    let (mut page, _) = open(&Yard::quick());
    let chart = "#curves [data-run=pretrain] svg";
    page.point_at("#curves [data-run=pretrain] .points-of circle:last-child", [0.0, -4.0]);
    page.wait_for("document.querySelector('#curves [data-run=pretrain] .values')?.textContent.includes('step 40')");
    let tip = text(&mut page, "#curves [data-run=pretrain] .values");
    assert!(tip.contains("Held-out loss") && tip.contains("0.1250"), "{tip}");
    page.eval(&format!("document.querySelector({chart:?}).focus()"));
    page.key("ArrowRight");
    assert_eq!(text(&mut page, "#said"), "Loss, step 1, 4 nats per token");
    page.key("ArrowRight");
    assert_eq!(text(&mut page, "#said"), "Loss, step 2, 2 nats per token");
    page.key("ArrowLeft");
    assert_eq!(text(&mut page, "#said"), "Loss, step 1, 4 nats per token");
    page.wait_for("document.querySelector('#curves [data-run=pretrain] .values')?.textContent.includes('step 1')");
}

#[test]
fn results_show_value_interval_and_change() {
    let (mut page, _) = open(&Yard::quick());
    let row = text(&mut page, "#results .results tbody tr:nth-child(2)");
    for part in ["sft", "from pretrain", "62.5 %", "57.5 to 67.5 %", "+50.0 pp", "better"] {
        assert!(row.contains(part), "{part:?} is not in {row:?}");
    }
    let classes = page.eval(
        "[...document.querySelectorAll('#results .results td .change')].map(c => c.className)",
    );
    let wanted = ["change good", "change unsure", "change good", "change bad"];
    assert_eq!(classes, json!(wanted));
    assert_eq!(count(&mut page, "#results .lift"), 2);
    assert_eq!(count(&mut page, "#results .lift:first-child .changes circle"), 2);
    assert_eq!(count(&mut page, "#results .lift:first-child .intervals line"), 2);
    assert_eq!(text(&mut page, "#results details .results tbody tr td"), "10.0 %5.0 to 15.0 %");
    let peft = text(&mut page, "#compare-table tr[data-family=fine-tuning]");
    for part in [
        "2.0 % of all",
        "12 rows of text/train.parquet",
        "Accuracy +25.0 pp",
        "Bits per byte +0.55 bits per byte",
    ] {
        assert!(peft.contains(part), "{part:?} is not in {peft:?}");
    }
}

#[test]
fn answers_are_filtered_by_text_and_by_right_and_wrong() {
    let (mut page, _) = open(&Yard::quick());
    let status = "#answers .answers .status";
    assert_eq!(text(&mut page, status), "30 of 30 prompts");
    assert_eq!(count(&mut page, ".asked"), 20);
    page.eval("document.querySelector('#answers .more').click()");
    assert_eq!(count(&mut page, ".asked"), 30);
    page.eval("document.querySelector('#answers input[type=search]').focus()");
    // In decomposed letters, as some systems type them.
    page.type_text("\u{1100}\u{1161}\u{11bc}\u{110b}\u{1161}\u{110c}\u{1175} 12");
    assert_eq!(text(&mut page, status), "1 of 30 prompts");
    assert!(text(&mut page, ".asked .prompt").contains("강아지 12은"));
    assert_eq!(count(&mut page, ".asked .badge.right"), 2);
    page.eval("(() => { const s = document.querySelector('#answers input[type=search]'); s.value = ''; s.dispatchEvent(new Event('input')); })()");
    let choose = |page: &mut Page, at: usize, value: &str| {
        page.eval(&format!("(() => {{ const s = document.querySelectorAll('#answers .answers select')[{at}]; s.value = {value:?}; s.dispatchEvent(new Event('change')); }})()"));
    };
    choose(&mut page, 1, "differ");
    assert_eq!(text(&mut page, status), "30 of 30 prompts", "peft is right, pretrain never");
    choose(&mut page, 2, "sft");
    choose(&mut page, 1, "right");
    assert_eq!(text(&mut page, status), "10 of 30 prompts");
    choose(&mut page, 1, "wrong");
    assert_eq!(text(&mut page, status), "20 of 30 prompts");
    page.eval("document.querySelector('#answers .choices input').click()");
    let shown = page.eval("[...document.querySelectorAll('.asked:first-child dt')].map(t => t.firstChild.textContent)");
    assert_eq!(shown, json!(["sft", "peft"]));
    assert_eq!(count(&mut page, "#samples tbody tr"), 3);
    assert!(text(&mut page, "#samples tbody tr").contains("<img src=x"));
}

#[test]
fn configurations_are_compared_key_by_key() {
    let yard = Yard::quick();
    yard.pipeline("long", 1e-2, false);
    let file = yard.page("quick = [\"runs/quick\"]\nlong = [\"runs/long\"]");
    let mut page = opened(&file, WIDE);
    assert_eq!(page.complaints(), [""; 0]);
    page.eval("(() => { const s = document.querySelectorAll('#lineage select'); s[0].value = 'quick/sft'; s[0].dispatchEvent(new Event('change')); s[1].value = 'long/sft'; s[1].dispatchEvent(new Event('change')); })()");
    assert_eq!(text(&mut page, "#lineage .status"), "2 keys differ");
    let rows = page.eval("[...document.querySelectorAll('#config-table tbody tr')].map(r => [...r.children].map(c => c.textContent))");
    assert_eq!(
        rows,
        json!([
            ["out", "runs/quick/sft", "runs/long/sft"],
            ["train.learning_rate", "0.0030", "0.0100"]
        ])
    );
    // Curves of one stage lie in one chart, and an unfinished run says so.
    assert_eq!(count(&mut page, "#curves [data-run=pretrain] .curve path"), 4);
    assert!(text(&mut page, "#stage-table").contains("unfinished"));
    assert_eq!(count(&mut page, "#results .results tbody tr"), 12);
    assert_eq!(count(&mut page, ".graph"), 2);
}

#[test]
fn words_explain_themselves_to_pointer_and_keyboard() {
    let (mut page, _) = open(&Yard::quick());
    assert_eq!(page.eval("document.getElementById('note').hidden"), true);
    page.point_at("#stage-table .term", [0.0, 0.0]);
    page.wait_for("!document.getElementById('note').hidden");
    assert!(text(&mut page, "#note").contains("How many numbers the model consists of."));
    page.eval("document.querySelector('#results thead .term').focus()");
    page.key("Enter");
    page.wait_for("document.getElementById('note').textContent.startsWith('The share of answers')");
    assert_eq!(page.eval("document.activeElement.getAttribute('aria-describedby')"), "note");
    page.key("Escape");
    assert_eq!(page.eval("document.getElementById('note').hidden"), true);
    assert!(text(&mut page, "#words").contains("what the model is given"));
    // What kind of test it is, and what a reported number is of.
    assert_eq!(text(&mut page, "#results .test p .term"), "generation");
    assert!(text(&mut page, "#numbers").contains("The model answers, always by its first choice"));
    let reported =
        "[...document.querySelectorAll('#run-quick-peft .pairs div')].map(d => d.textContent)";
    let reported = page.eval(reported).to_string().replace('\u{202f}', " ");
    for line in
        ["ROUGE-L, clinic, after25.0 %", "chrF, clinic, after31.5 %", "Held-out KL, before2.500"]
    {
        assert!(reported.contains(line), "{line} is not in {reported}");
    }
    assert!(
        text(&mut page, "#numbers")
            .contains("The share of answers that are right by rule; of a choice,")
    );
}

#[test]
fn a_lone_unfinished_run_makes_a_page() {
    let yard = Yard::unfinished();
    let mut page = opened(&yard.page("p = [\"runs/p\"]"), WIDE);
    assert_eq!(page.complaints(), [""; 0]);
    assert!(text(&mut page, "#stages").contains("unfinished"));
    assert!(text(&mut page, "#results").contains("No run of evaluate is among these runs"));
    assert!(text(&mut page, "#compare").contains("Neither a stage of post-training"));
    assert_eq!(count(&mut page, "#curves .charts figure"), 1);
}
