//! Options that programs and commands beside the stages share: one wording for each.

use std::error::Error;
use std::str::FromStr;

use clap::{ArgAction, Args};

use crate::device::DeviceSpec;

pub(crate) const DEVICE: &str = "auto, cpu or cuda:N";
pub(crate) const VERBOSE: &str = "Log more; -vv logs everything";

/// How much a program says of its work, for a command line's `#[command(flatten)]`.
#[derive(Debug, Clone, Copy, Args)]
pub struct Verbosity {
    /// How often the flag was given, as [`program`](crate::program) takes it.
    #[arg(short, long, action = ArgAction::Count, help = VERBOSE)]
    pub verbose: u8,
}

/// Where and how a program runs a model, for a command line's `#[command(flatten)]`. `P` is the model library's precision,
/// which is not known here.
#[derive(Debug, Clone, Copy, Args)]
pub struct Running<P>
where
    P: FromStr + Clone + Send + Sync + 'static,
    P::Err: Into<Box<dyn Error + Send + Sync>>,
{
    #[expect(missing_docs, reason = "the constant is its documentation")]
    #[arg(long, value_name = "DEVICE", default_value = "auto", help = DEVICE)]
    pub device: DeviceSpec,
    /// Number type that models run in: fp32, bf16 or fp16.
    #[arg(long, value_name = "TYPE", default_value = "fp32", value_parser = |text: &str| text.parse::<P>())]
    pub precision: P,
    #[expect(missing_docs, reason = "the type is its documentation")]
    #[command(flatten)]
    pub verbosity: Verbosity,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(name = "try", max_term_width = 100)]
    struct Command {
        #[command(flatten)]
        running: Running<u8>,
    }

    #[test]
    fn options_have_defaults_and_are_read() {
        let read = |words: &str| {
            Command::try_parse_from(words.split_whitespace()).map(|command| command.running)
        };
        let given = read("try --device cuda:1 --precision 16 -vv").unwrap();
        let Running { device, precision, verbosity: Verbosity { verbose } } = given;
        assert_eq!((device, precision, verbose), (DeviceSpec::Cuda(1), 16, 2));
        // This test's precision is a number, so the default is none.
        let error = read("try").unwrap_err().to_string();
        assert!(error.contains("'fp32' for '--precision <TYPE>'"), "{error}");
        let error = read("try --precision 1 --device gpu").unwrap_err().to_string();
        assert!(error.contains("`gpu` is not a device; use auto, cpu or cuda:N"), "{error}");
    }

    #[test]
    fn the_help_is_the_same_everywhere() {
        let help = Command::try_parse_from(["try", "--help"]).unwrap_err().to_string();
        for line in [
            "--device <DEVICE>   auto, cpu or cuda:N [default: auto]",
            "--precision <TYPE>  Number type that models run in: fp32, bf16 or fp16 [default: fp32]",
            "-v, --verbose...        Log more; -vv logs everything",
        ] {
            assert!(help.contains(line), "{line:?} in\n{help}");
        }
    }
}
