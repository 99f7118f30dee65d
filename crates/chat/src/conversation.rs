//! The conversation: its history, its commands, and what happens when it outgrows the context.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use data::encode::chat_prompt;
use data::format::Message;
use model::generate::Finish;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use stage::Interrupt;

use crate::names::{name_and_dir, name_of};
use crate::speaker::{Settings, Speaker};
use crate::{Args, Model, show};

const HELP: &str = "\
/reset          forget the conversation
/system TEXT    set the system prompt and forget the conversation; without TEXT remove it
/retry          answer the last message again
/set NAME=VALUE change a setting, such as temperature=0.7; without NAME show them
/adapter NAME   go on with another --adapter, with none for the model alone; without NAME list them
/save FILE      add the conversation to a file of JSON lines, as data-prep reads them
/help           this list
/quit           end (Ctrl-D does too; Ctrl-C ends an answer)
";

/// The adapters that the command line names.
#[derive(Debug, Default)]
pub(crate) struct Adapters(Vec<(String, PathBuf)>);

impl Adapters {
    /// Reads `[NAME=]DIR`s.
    pub(crate) fn find(texts: &[String]) -> anyhow::Result<Self> {
        let mut all = Vec::<(String, PathBuf)>::new();
        for text in texts {
            let (name, dir) = name_and_dir(text);
            let name = name.map_or_else(|| name_of(&dir), Ok)?;
            anyhow::ensure!(
                name != "none" && all.iter().all(|(other, _)| *other != name),
                "--adapter {text}: `{name}` is taken; give it another name, as in --adapter NAME=DIR"
            );
            all.push((name, dir));
        }
        Ok(Self(all))
    }

    /// The one to begin with.
    pub(crate) fn first(&self) -> Option<&Path> {
        self.0.first().map(|(_, dir)| dir.as_path())
    }

    fn names(&self) -> String {
        let names = self.0.iter().map(|(name, _)| name.as_str());
        names.chain(["none"]).collect::<Vec<_>>().join(", ")
    }

    fn get(&self, name: &str) -> anyhow::Result<Option<&Path>> {
        if name == "none" {
            return Ok(None);
        }
        let found = self.0.iter().find(|(other, _)| other == name);
        let found = found
            .with_context(|| format!("there is no adapter `{name}`; there is {}", self.names()));
        Ok(Some(found?.1.as_path()))
    }
}

/// What was said so far.
pub(crate) struct Conversation {
    messages: Vec<Message>,
}

impl Conversation {
    pub(crate) fn new(system: Option<String>) -> Self {
        let messages = system.map(|text| Message::new("system", text)).into_iter().collect();
        Self { messages }
    }

    /// Shows the answer to `prompt` and keeps both.
    pub(crate) fn answer(&mut self, speaker: &mut Speaker<'_>, prompt: &str) -> anyhow::Result<()> {
        self.messages.push(Message::new("user", prompt));
        let ids = self.prompt_that_fits(speaker)?;
        let said = speaker.say(&ids)?;
        show("\n")?;
        if said.finish == Finish::Cancelled {
            // An answer that was cut off is no example to follow.
            self.messages.pop();
        } else {
            self.messages.push(Message::new("assistant", said.text));
        }
        Ok(())
    }

    /// The same; where it fails, the prompt is not part of the conversation.
    fn answer_or_forget(&mut self, speaker: &mut Speaker<'_>, prompt: &str) -> anyhow::Result<()> {
        let answered = self.answer(speaker, prompt);
        if answered.is_err() {
            self.take_back();
        }
        answered
    }

    /// Adds the conversation to a file of JSON lines.
    fn save(&self, file: &str) -> anyhow::Result<()> {
        anyhow::ensure!(!file.is_empty(), "give /save a file, as in /save talks.jsonl");
        let line = serde_json::json!({ "messages": self.messages });
        let mut out = fs_err::OpenOptions::new().create(true).append(true).open(file)?;
        writeln!(out, "{line}")?;
        Ok(())
    }

    /// The ids of the conversation; its oldest exchanges are left out, and forgotten, where it has outgrown the context.
    fn prompt_that_fits(&mut self, speaker: &Speaker<'_>) -> anyhow::Result<Vec<u32>> {
        let first = usize::from(self.messages.first().is_some_and(|m| m.role == "system"));
        let mut kept = self.messages.clone();
        loop {
            let ids = match &speaker.model.template {
                Some(template) => chat_prompt(&speaker.model.tokenizer, template, &kept)?,
                None => anyhow::bail!("the model has no chat template"),
            };
            let fits = speaker.has_room(ids.len());
            let forgotten = self.messages.len() - kept.len();
            if fits && forgotten > 0 {
                tracing::warn!(
                    "the conversation has outgrown the context; its first {forgotten} messages are forgotten"
                );
                self.messages.clone_from(&kept);
            }
            // A message that does not fit even alone costs the others nothing.
            if fits || kept.len() <= first + 1 {
                return Ok(ids);
            }
            let exchange = 2.min(kept.len() - first - 1);
            kept.drain(first..first + exchange);
        }
    }

    /// Takes back the last exchange and returns what was asked.
    fn take_back(&mut self) -> Option<String> {
        let asked = self.messages.iter().rposition(|message| message.role == "user")?;
        let message = self.messages.drain(asked..).next()?;
        Some(message.content)
    }
}

/// What a line leads to.
enum Next {
    Line,
    /// Go on with this adapter, or with none.
    Adapter(Option<PathBuf>),
    End,
}

/// Reads lines until the end: each is answered, or with --raw continued.
pub(crate) fn in_terminal(
    mut model: Model,
    args: &Args,
    adapters: &Adapters,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let mut editor = DefaultEditor::new()?;
    let mut talk = Conversation::new(args.system.clone());
    let mut settings = Settings::new(args);
    loop {
        let mut speaker = Speaker::new(&model, settings, interrupt)?;
        let wanted = loop {
            interrupt.clear();
            let line = match editor.readline("> ") {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => continue,
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            editor.add_history_entry(line)?;
            match take(line, &mut talk, &mut speaker, adapters) {
                Ok(Next::Line) => {}
                Ok(Next::Adapter(wanted)) => break wanted,
                Ok(Next::End) => return Ok(()),
                // What cannot be done does not end the conversation.
                Err(error) => eprint_report(&error),
            }
        };
        settings = speaker.settings.clone();
        drop(speaker);
        match Model::load(args, wanted.as_deref()) {
            Ok(other) => model = other,
            Err(error) => eprint_report(&error),
        }
    }
}

fn take(
    line: &str,
    talk: &mut Conversation,
    speaker: &mut Speaker<'_>,
    adapters: &Adapters,
) -> anyhow::Result<Next> {
    if let Some(command) = line.strip_prefix('/') {
        return obey(command, talk, speaker, adapters);
    }
    if speaker.model.template.is_some() {
        talk.answer_or_forget(speaker, line)?;
    } else {
        speaker.go_on(line)?;
    }
    Ok(Next::Line)
}

fn obey(
    command: &str,
    talk: &mut Conversation,
    speaker: &mut Speaker<'_>,
    adapters: &Adapters,
) -> anyhow::Result<Next> {
    let (name, rest) = command.split_once(' ').unwrap_or((command, ""));
    let rest = rest.trim();
    match name {
        "quit" | "exit" => return Ok(Next::End),
        "help" => show(HELP)?,
        "reset" => talk.messages.retain(|message| message.role == "system"),
        "system" => {
            *talk = Conversation::new(Some(rest.to_owned()).filter(|text| !text.is_empty()));
        }
        "retry" => match talk.take_back() {
            Some(asked) => talk.answer_or_forget(speaker, &asked)?,
            None => show("nothing has been asked yet\n")?,
        },
        "set" if rest.is_empty() => show(&format!("{}\n", speaker.settings))?,
        "set" => speaker.settings.set(rest)?,
        "adapter" if rest.is_empty() => show(&format!("{}\n", adapters.names()))?,
        "adapter" => return Ok(Next::Adapter(adapters.get(rest)?.map(Path::to_owned))),
        "save" => talk.save(rest)?,
        _ => show(&format!("unknown command /{name}\n{HELP}"))?,
    }
    Ok(Next::Line)
}

#[expect(clippy::print_stderr, reason = "an error inside a conversation that goes on")]
fn eprint_report(error: &anyhow::Error) {
    eprint!("{}", stage::report(error));
}
