//! How a principle becomes a turn of a conversation.

use std::collections::BTreeMap;

use minijinja::{Environment, UndefinedBehavior};
use serde::Deserialize;

use super::{ConstitutionError, Language, Localised};
use crate::format::describe;

/// The `[templates]` table. The first four are Jinja; the others are used as they stand.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Templates {
    pub(super) critique: Localised<String>,
    pub(super) revision: Localised<String>,
    pub(super) direct_revision: Localised<String>,
    pub(super) comparison: Localised<String>,
    pub(super) reasoning: Localised<String>,
    pub(super) answer: Localised<String>,
}

impl Default for Templates {
    fn default() -> Self {
        let request = both("{{ request }}", "{{ request }}");
        Self {
            critique: request.clone(),
            revision: request.clone(),
            direct_revision: request,
            comparison: both(
                "A user says: {{ prompt }}\n{{ question }}\n(A) {{ response_a }}\n(B) {{ response_b }}",
                "사용자의 말: {{ prompt }}\n{{ question }}\n(A) {{ response_a }}\n(B) {{ response_b }}",
            ),
            reasoning: both("Let us think step by step.", "차근차근 생각해 봐요."),
            answer: both("The answer is (", "답은 ("),
        }
    }
}

pub(super) fn both(en: &str, ko: &str) -> Localised<String> {
    Localised { en: en.to_owned(), ko: ko.to_owned() }
}

/// What a template may use; none of a text that is no template.
pub(super) type Fields = Option<&'static [&'static str]>;

/// The name that the template engine has for a template.
pub(super) fn title(name: &str, language: Language) -> String {
    format!("{name}.{}", language.code())
}

/// The key of the file that holds a template.
pub(super) fn key(name: &str, language: Language) -> String {
    format!("templates.{}", title(name, language))
}

impl Templates {
    /// All, by name; of those that are Jinja the fields they may use.
    pub(super) fn all(&self) -> [(&'static str, &Localised<String>, Fields); 6] {
        [
            ("critique", &self.critique, Some(&["request", "prompt", "response"])),
            ("revision", &self.revision, Some(&["request", "prompt", "response", "critique"])),
            ("direct_revision", &self.direct_revision, Some(&["request", "prompt", "response"])),
            (
                "comparison",
                &self.comparison,
                Some(&["question", "prompt", "response_a", "response_b"]),
            ),
            ("reasoning", &self.reasoning, None),
            ("answer", &self.answer, None),
        ]
    }

    /// The engine with all templates, each tried on texts.
    pub(super) fn compile(&self) -> Result<Environment<'static>, ConstitutionError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_keep_trailing_newline(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        for (name, texts, fields) in self.all() {
            for language in Language::ALL {
                let (key, source) = (key(name, language), texts.of(language));
                match fields {
                    Some(fields) => {
                        add(&mut environment, &title(name, language), source, &key, fields)?;
                    }
                    None if ["{{", "{%", "{#"].iter().any(|mark| source.contains(mark)) => {
                        return Err(ConstitutionError::NotPlain { key });
                    }
                    None => {}
                }
            }
        }
        Ok(environment)
    }
}

fn add(
    environment: &mut Environment<'static>,
    title: &str,
    source: &str,
    key: &str,
    fields: &[&str],
) -> Result<(), ConstitutionError> {
    environment.add_template_owned(title.to_owned(), source.to_owned()).map_err(|error| {
        ConstitutionError::Template { key: key.to_owned(), message: describe(&error) }
    })?;
    let failed = |error: minijinja::Error| ConstitutionError::Render {
        key: key.to_owned(),
        message: describe(&error),
    };
    let template = environment.get_template(title).map_err(failed)?;
    // The engine counts its own functions (`range`, ...) among what a template does not declare.
    let known = |name: &String| {
        fields.contains(&name.as_str()) || environment.globals().any(|(global, _)| global == name)
    };
    let unknown = template.undeclared_variables(false).into_iter().filter(|name| !known(name));
    if let Some(field) = unknown.min() {
        let (key, known) = (key.to_owned(), fields.join(", "));
        return Err(ConstitutionError::UnknownField { key, field, known });
    }
    // Filters and methods are looked up only when a template runs.
    let sample: BTreeMap<&str, &str> = fields.iter().map(|field| (*field, "text")).collect();
    template.render(&sample).map(|_| ()).map_err(failed)
}
