//! The conversation: its history, its commands, and what happens when it outgrows the context.

use data::encode::chat_prompt;
use data::format::Message;
use data::template::ChatTemplate;
use model::generate::Finish;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::speaker::Speaker;
use crate::{Args, show};

const HELP: &str = "\
/reset          forget the conversation
/system TEXT    set the system prompt and forget the conversation; without TEXT remove it
/retry          answer the last message again
/help           this list
/quit           end (Ctrl-D does too; Ctrl-C ends an answer)
";

/// What was said so far.
pub(crate) struct Conversation<'a> {
    template: &'a ChatTemplate,
    messages: Vec<Message>,
}

impl<'a> Conversation<'a> {
    pub(crate) fn new(template: &'a ChatTemplate, system: Option<String>) -> Self {
        let messages = system.map(|text| Message::new("system", text)).into_iter().collect();
        Self { template, messages }
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

    /// The ids of the conversation; its oldest exchanges are left out, and forgotten, where it has outgrown the context.
    fn prompt_that_fits(&mut self, speaker: &Speaker<'_>) -> anyhow::Result<Vec<u32>> {
        let first = usize::from(self.messages.first().is_some_and(|m| m.role == "system"));
        let mut kept = self.messages.clone();
        loop {
            let ids = chat_prompt(speaker.tokenizer, self.template, &kept)?;
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

/// Reads lines until the end: each is answered, or continued where there is no template.
pub(crate) fn in_terminal(
    speaker: &mut Speaker<'_>,
    template: Option<&ChatTemplate>,
    args: &Args,
) -> anyhow::Result<()> {
    let mut editor = DefaultEditor::new()?;
    let mut talk = template.map(|template| Conversation::new(template, args.system.clone()));
    loop {
        speaker.interrupt.clear();
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
        let outcome = match (line.strip_prefix('/'), &mut talk) {
            (Some("quit" | "exit"), _) => return Ok(()),
            (Some(command), Some(talk)) => obey(command, talk, speaker),
            (None, Some(talk)) => talk.answer(speaker, line),
            (_, None) => speaker.go_on(line),
        };
        // A prompt that cannot be answered does not end the conversation.
        if let Err(error) = outcome {
            if let Some(talk) = &mut talk {
                talk.take_back();
            }
            eprint_report(&error);
        }
    }
}

fn obey(
    command: &str,
    talk: &mut Conversation<'_>,
    speaker: &mut Speaker<'_>,
) -> anyhow::Result<()> {
    let (name, rest) = command.split_once(' ').unwrap_or((command, ""));
    match name {
        "help" => show(HELP)?,
        "reset" => talk.messages.retain(|message| message.role == "system"),
        "system" => {
            let text = Some(rest.trim()).filter(|text| !text.is_empty());
            *talk = Conversation::new(talk.template, text.map(str::to_owned));
        }
        "retry" => match talk.take_back() {
            Some(asked) => talk.answer(speaker, &asked)?,
            None => show("nothing has been asked yet\n")?,
        },
        _ => show(&format!("unknown command /{name}\n{HELP}"))?,
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "an error inside a conversation that goes on")]
fn eprint_report(error: &anyhow::Error) {
    eprint!("{}", stage::report(error));
}
