//! The page: one HTML file with its data, styles and scripts in it.

use artifact::evaluation::Evaluation;
use indexmap::IndexMap;
use minijinja::{AutoEscape, Environment, Value, context};
use serde::Serialize;

use crate::gather::Run;
use crate::samples::Answers;
use crate::words::{Metric, Word};

/// Everything the page's scripts read.
#[derive(Debug, Serialize)]
pub(crate) struct Data {
    pub(crate) title: String,
    /// In the order of the config.
    pub(crate) pipelines: Vec<String>,
    pub(crate) runs: Vec<Run>,
    pub(crate) evaluations: Vec<Evaluated>,
    pub(crate) metrics: Vec<Metric>,
    pub(crate) glossary: Vec<Word>,
}

/// What one run of `evaluate` found.
#[derive(Debug, Serialize)]
pub(crate) struct Evaluated {
    /// [`Run::id`] of that run.
    pub(crate) run: String,
    pub(crate) pipeline: String,
    pub(crate) results: Evaluation,
    /// Which run made each model, where it is on the page.
    pub(crate) makers: IndexMap<String, String>,
    pub(crate) answers: Option<Answers>,
}

/// The libraries, each minified by its makers; see `assets/vendor/fetch`.
const VENDOR: [(&str, &str); 3] = [
    ("d3 7.9.0", include_str!("../assets/vendor/d3.min.js")),
    ("Observable Plot 0.6.17", include_str!("../assets/vendor/plot.umd.min.js")),
    ("dagre 3.1.3", include_str!("../assets/vendor/dagre.min.js")),
];

/// Their licences, which travel with them.
const LICENCES: [(&str, &str); 3] = [
    ("d3", include_str!("../assets/vendor/LICENSE.d3")),
    ("Observable Plot", include_str!("../assets/vendor/LICENSE.plot")),
    ("dagre", include_str!("../assets/vendor/LICENSE.dagre")),
];

/// The page's own scripts, in the order they run.
const SCRIPTS: [&str; 8] = [
    include_str!("../assets/base.js"),
    include_str!("../assets/terms.js"),
    include_str!("../assets/graph.js"),
    include_str!("../assets/curves.js"),
    include_str!("../assets/results.js"),
    include_str!("../assets/answers.js"),
    include_str!("../assets/lineage.js"),
    include_str!("../assets/main.js"),
];

/// The page as HTML.
///
/// # Errors
/// If the data cannot be JSON, which is a defect.
pub(crate) fn render(data: &Data) -> anyhow::Result<String> {
    let mut templates = Environment::new();
    templates.set_auto_escape_callback(|_| AutoEscape::Html);
    templates.add_template("page", include_str!("../assets/page.html"))?;
    let scripts: Vec<Value> = VENDOR
        .iter()
        .map(|(_, script)| *script)
        .chain(SCRIPTS)
        .map(|script| Value::from_safe_string(without_map(script)))
        .collect();
    let page = context! {
        title => data.title,
        glossary => data.glossary,
        licences => LICENCES.map(|(name, text)| context! { name, text }).to_vec(),
        libraries => VENDOR.map(|(name, _)| name).to_vec(),
        style => Value::from_safe_string(include_str!("../assets/style.css").to_owned()),
        scripts,
        data => Value::from_safe_string(embedded(&serde_json::to_string(data)?)),
    };
    Ok(templates.get_template("page")?.render(page)?)
}

/// A library without the line that names its source map, which is not there.
fn without_map(script: &str) -> String {
    let lines = script.lines().filter(|line| !line.starts_with("//# sourceMappingURL="));
    lines.collect::<Vec<_>>().join("\n")
}

/// JSON as it may stand in a `<script>` element: nothing in it ends the element, opens a comment or a line in JavaScript.
fn embedded(json: &str) -> String {
    let mut safe = String::with_capacity(json.len() + json.len() / 16);
    for c in json.chars() {
        match c {
            '<' => safe.push_str("\\u003c"),
            '>' => safe.push_str("\\u003e"),
            '&' => safe.push_str("\\u0026"),
            '\u{2028}' => safe.push_str("\\u2028"),
            '\u{2029}' => safe.push_str("\\u2029"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words;

    fn page(title: &str) -> String {
        let data = Data {
            title: title.to_owned(),
            pipelines: vec!["q".to_owned()],
            runs: Vec::new(),
            evaluations: Vec::new(),
            metrics: words::metrics(),
            glossary: words::glossary(),
        };
        render(&data).unwrap()
    }

    #[test]
    fn hostile_text_ends_no_element() {
        let hostile = "</script><img src=x onerror=alert(1)>\u{2028}";
        let plain = page("plain");
        let html = page(hostile);
        assert!(html.contains("\\u003c/script\\u003e\\u003cimg"));
        assert!(!html.contains("<img"));
        let scripts = html.split_once("<script").unwrap().1;
        assert!(!scripts.contains('\u{2028}'), "a line break of JavaScript's");
        let scripts = |html: &str| html.matches("</script").count();
        assert_eq!(scripts(&html), scripts(&plain));
        let json: serde_json::Value =
            serde_json::from_str(&embedded(&serde_json::to_string(hostile).unwrap())).unwrap();
        assert_eq!(json, hostile);
    }

    #[test]
    fn nothing_is_fetched() {
        let html = page("t");
        for outside in ["src=", "<link", "@import", "sourceMappingURL", "url(http"] {
            let outside_scripts = html.split("<script").next().unwrap();
            assert!(!outside_scripts.contains(outside), "{outside}");
        }
        assert!(!html.contains("sourceMappingURL="));
        assert!(html.contains("default-src 'none'"));
        assert_eq!(page("t"), html, "the same data give the same bytes");
    }

    #[test]
    fn licences_travel_with_the_libraries() {
        let html = page("t");
        for holder in ["Mike Bostock", "Observable, Inc.", "Chris Pettitt"] {
            assert!(html.contains(holder), "{holder}");
        }
    }
}
