//! Single operations, each beside what libtorch itself offers for it.

use anyhow::Result;
use clap::Args;

use crate::Target;

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
}

pub(crate) fn table(options: &Options) -> Result<String> {
    let _ = options.target.device()?;
    Ok(String::new())
}
