//! What the files in `pipelines/` say.

/// One `$(call stage,NAME,INPUTS,PROGRAM)` line of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineStage {
    /// The stage's name.
    pub name: String,
    /// What it reads: earlier stages by name, and files.
    pub reads: Vec<String>,
    /// The program with its command, where it has some: `cai train`.
    pub program: String,
}

/// The stages of a pipeline's file in the order they are written.
pub fn stages(source: &str) -> Vec<PipelineStage> {
    let calls = source.lines().filter_map(|line| line.strip_prefix("$(call stage,"));
    calls
        .map(|call| {
            // A variable among the inputs has brackets of its own.
            let call = call.split("##").next().unwrap_or_default().trim_end();
            let mut arguments = call.strip_suffix(')').unwrap_or(call).split(',').map(str::trim);
            let name = arguments.next().unwrap_or_default().to_owned();
            let reads = arguments.next().unwrap_or_default().split_whitespace();
            let reads = reads.map(str::to_owned).collect();
            let program = arguments.next().unwrap_or(&name).to_owned();
            PipelineStage { name, reads, program }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_stage() {
        let source = "# $(call stage,no,)\n$(call stage,data-prep,)   ## make (some) data, all\n\
                      $(call stage,cai-train,data-prep configs/c.toml,cai train)\n\
                      $(call stage,lora,$(methods.reads),peft)\n.PHONY: x\n";
        let stage = |name: &str, reads: &[&str], program: &str| PipelineStage {
            name: name.to_owned(),
            reads: reads.iter().map(|&it| it.to_owned()).collect(),
            program: program.to_owned(),
        };
        let expected = [
            stage("data-prep", &[], "data-prep"),
            stage("cai-train", &["data-prep", "configs/c.toml"], "cai train"),
            stage("lora", &["$(methods.reads)"], "peft"),
        ];
        assert_eq!(stages(source), expected);
    }
}
