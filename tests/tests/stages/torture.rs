//! `scripts/torture`: that it puts a stage through what it says, and that it notices what is wrong.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use temper_tests::binaries::binary;
use temper_tests::fixtures::root;

use super::*;

fn torture(binaries: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(root().join("scripts/torture"));
    command.arg("--binaries").arg(binaries).args(words).output().unwrap()
}

/// The row of a stage and a kind, as words.
fn row(output: &Output, stage: &str, kind: &str) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut rows = text.lines().map(words);
    let row = rows.find(|row| row.len() > 2 && row[0] == stage && row[1] == kind);
    row.unwrap_or_else(|| panic!("no row of {stage}, {kind}: {output:?}"))
}

#[test]
fn a_tortured_stage_ends_with_the_same_bits() {
    let pretrain = binary("pretrain").unwrap();
    binary("data-prep").unwrap();
    let binaries = pretrain.parent().unwrap();
    let output =
        torture(binaries, &["--stages", "pretrain", "--kind", "kill,usr1", "--kills", "2"]);
    for kind in ["kill", "usr1"] {
        let row = row(&output, "pretrain", kind);
        assert_eq!(row[2], "2", "{row:?}");
        assert!(row.join(" ").contains("same to the bit"), "{row:?}");
    }
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

/// A stage that takes a moment and leaves a model, different each time.
const CARELESS: &str = r#"#!/bin/bash
while [ "$1" != --out ]; do shift; done
mkdir -p "$2/model" "$2/checkpoints" && sleep 0.2
echo "$RANDOM$RANDOM" >"$2/model/model.safetensors"
echo '{"wall_seconds": 0.2, "results": {}}' >"$2/manifest.json"
"#;

#[test]
fn a_stage_that_comes_out_differently_or_fails_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let program = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs_err::write(&path, text).unwrap();
        fs_err::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    };
    program("data-prep", &CARELESS.replace("$RANDOM$RANDOM", "1"));
    program("pretrain", CARELESS);
    let words = ["--stages", "data-prep,pretrain", "--kills", "1"];
    let output = torture(dir.path(), &words);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(row(&output, "data-prep", "kill").join(" ").contains("same to the bit"));
    let different = row(&output, "pretrain", "kill").join(" ");
    assert!(different.ends_with("DIFFERENT: model/model.safetensors"), "{different}");
    program("pretrain", "#!/bin/bash\necho 'error: no' >&2\nexit 1\n");
    let output = torture(dir.path(), &words);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(row(&output, "pretrain", "kill").join(" ").contains("exit code 1, not 0"));
    let output = torture(dir.path(), &["--kind", "flood"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--kind: there is no flood"));
}
