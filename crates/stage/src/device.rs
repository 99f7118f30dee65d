//! Which device a run asks for; finding it is `torch_ext::device::resolve`'s work.

use std::fmt;
use std::str::FromStr;

/// A device as written on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceSpec {
    /// The first CUDA device if there is a usable one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of that index.
    Cuda(usize),
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let index = |digits: &str| digits.parse().ok().filter(|_| !digits.starts_with('+'));
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ => text.strip_prefix("cuda:").and_then(index).map(Self::Cuda).ok_or_else(|| {
                format!(
                    "`{text}` is not a device; use auto, cpu or cuda:N (cuda:0 is the first GPU)"
                )
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_print_as_they_parse() {
        for (text, spec) in
            [("auto", DeviceSpec::Auto), ("cpu", DeviceSpec::Cpu), ("cuda:3", DeviceSpec::Cuda(3))]
        {
            assert_eq!(text.parse(), Ok(spec));
            assert_eq!(spec.to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_refused_with_the_choices() {
        for bad in ["gpu", "cuda", "cuda:", "cuda:-1", "cuda:+1", "CPU", ""] {
            assert_eq!(
                bad.parse::<DeviceSpec>(),
                Err(format!(
                    "`{bad}` is not a device; use auto, cpu or cuda:N (cuda:0 is the first GPU)"
                ))
            );
        }
    }
}
