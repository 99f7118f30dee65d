//! A template comes with a model from anywhere, so it is code of a stranger: what it may use up is bounded.
//!
//! - *Instructions*: the engine's fuel.
//! - *Bytes*: all that a rendering makes, strings, lists and output, is charged to an allowance that grows with what it was
//!   given. The engine charges nothing itself, so instructions that charge are put into the compiled template behind every
//!   one that can make something large ([`metered`]), and what filters and methods can make far larger than what
//!   goes in is reckoned first ([`filters`]).
//! - *Depth*: lists in lists only so deep, and no namespace in itself, so that no walk through a value overflows the stack.
//! - *Time*: a deadline, which only a template far beyond the others meets.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use artifact::guard;
use minijinja::machinery::{
    CodeGenerator, Instruction, Instructions, Token, Vm, WhitespaceConfig, make_string_output,
    parse, tokenize,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Object, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State};

use crate::template::environment::NAME;

mod filters;

/// Instructions of one rendering; a conversation of a thousand turns takes some hundred thousand.
const FUEL: u64 = 20_000_000;
/// Bytes that any rendering may make, and how many more for each byte of what it is given.
const ALLOWANCE: u64 = 64 << 20;
const ALLOWANCE_PER_BYTE: u64 = 1024;
/// What an item of a list counts beside its text.
const ITEM_BYTES: u64 = 40;
/// Lists in lists.
const DEPTH: u32 = 48;
/// Multiplications in a source: the engine reckons those of constants when it compiles, each into 100 MB of text at most.
const PRODUCTS: usize = 16;
/// The longest source.
const SOURCE_BYTES: usize = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(10);

// Names that no template can write.
const START: &str = "#start";
const CHARGE: &str = "#charge";
/// Also makes one list of lists that were added: the engine keeps the parts, and walks through sums of sums ever slower.
const FLAT: &str = "#flat";
const KEEP: &str = "#keep";
const METER: &str = "#meter";

/// A compiled template with its charges.
pub(super) struct Program {
    main: Instructions<'static>,
    blocks: BTreeMap<&'static str, Instructions<'static>>,
}

/// Compiles a template.
pub(super) fn compile(source: &str) -> Result<Program, Error> {
    if source.len() > SOURCE_BYTES {
        let what = format!("is {} bytes long; {SOURCE_BYTES} are allowed", source.len());
        return Err(refusal(what));
    }
    let source = kept(source);
    let blanks =
        WhitespaceConfig { trim_blocks: true, lstrip_blocks: true, ..WhitespaceConfig::default() };
    let tokens = tokenize(source, false, SyntaxConfig, blanks);
    // At what is no token the engine's iterator stands still, and gives the error again for ever.
    let tokens = tokens.map_while(Result::ok);
    let products = tokens.filter(|(token, _)| matches!(token, Token::Mul | Token::Pow)).count();
    if products > PRODUCTS {
        return Err(refusal(format!("multiplies {products} times; {PRODUCTS} are allowed")));
    }
    let tree = parse(source, NAME, SyntaxConfig, blanks)?;
    let mut generator = CodeGenerator::new(NAME, source);
    generator.compile_stmt(&tree);
    let (main, blocks) = generator.finish();
    let blocks = blocks.iter().map(|(name, block)| (*name, metered(block, false))).collect();
    Ok(Program { main: metered(&main, true), blocks })
}

/// The source, for as long as the process lives: the engine's instructions borrow it. Equal ones are kept once.
fn kept(source: &str) -> &'static str {
    static SOURCES: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    let mut sources = SOURCES.lock().unwrap_or_else(PoisonError::into_inner);
    let sources = sources.get_or_insert_default();
    sources.get(source).copied().unwrap_or_else(|| {
        let source: &'static str = Box::leak(source.into());
        sources.insert(source);
        source
    })
}

/// Renders a template over `context`. A panic of the engine is an error: it meets one in formats that it cannot parse.
pub(super) fn render(
    environment: &Environment<'static>,
    program: &Program,
    context: &serde_json::Map<String, serde_json::Value>,
) -> Result<String, Error> {
    guard::catching(|| evaluate(environment, program, context))
        .unwrap_or_else(|panic| Err(refusal(format!("is one that the engine fails at ({panic})"))))
}

fn evaluate(
    environment: &Environment<'static>,
    program: &Program,
    context: &serde_json::Map<String, serde_json::Value>,
) -> Result<String, Error> {
    let root = Value::from_serialize(context);
    let mut text = String::new();
    let mut output = make_string_output(&mut text);
    Vm::new(environment).eval(
        &program.main,
        root,
        &program.blocks,
        &mut output,
        AutoEscape::None,
    )?;
    Ok(text)
}

/// Puts the limits into an environment.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_fuel(Some(FUEL));
    // A macro that calls itself costs more than a step of this.
    environment.set_recursion_limit(200);
    environment.set_formatter(|out: &mut Output, state: &State, value: &Value| {
        meter(state)?.charge(value)?;
        write!(out, "{value}").map_err(Error::from)
    });
    environment.add_filter(START, |state: &State, context: &Value| {
        if state.get_temp(METER).is_none() {
            let meter = Meter::over(context)?;
            state.set_temp(METER, Value::from_object(meter));
        }
        Ok::<_, Error>(())
    });
    environment.add_filter(CHARGE, |state: &State, value: &Value| {
        meter(state)?.charge(value)?;
        Ok::<_, Error>(value.clone())
    });
    environment.add_filter(FLAT, |state: &State, value: &Value| {
        meter(state)?.charge(value)?;
        if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
            return Ok(value.try_iter()?.collect());
        }
        Ok::<_, Error>(value.clone())
    });
    environment.add_filter(KEEP, |state: &State, value: &Value| {
        meter(state)?.charge(value)?;
        if holds_namespace(value) {
            return Err(refusal("puts a namespace into a namespace"));
        }
        Ok(value.clone())
    });
    filters::install(environment);
}

/// What a value is charged.
fn weight(value: &Value) -> Result<u64, Error> {
    let whole = u64::MAX / 2;
    let given = Meter::of(whole);
    given.charge(value)?;
    Ok(whole - given.left.into_inner())
}

/// What a rendering may still make.
#[derive(Debug)]
struct Meter {
    left: AtomicU64,
    deadline: Instant,
}

impl Object for Meter {}

impl Meter {
    /// The allowance over what a template is given.
    fn over(context: &Value) -> Result<Self, Error> {
        let bytes = weight(context)?.saturating_mul(ALLOWANCE_PER_BYTE);
        Ok(Self::of(ALLOWANCE.saturating_add(bytes)))
    }

    fn of(bytes: u64) -> Self {
        Self { left: AtomicU64::new(bytes), deadline: Instant::now() + DEADLINE }
    }

    fn take(&self, bytes: u64) -> Result<(), Error> {
        let left = self.left.load(Ordering::Relaxed);
        let Some(left) = left.checked_sub(bytes) else {
            return Err(refusal("makes more text than its input can account for"));
        };
        self.left.store(left, Ordering::Relaxed);
        Ok(())
    }

    /// Charges a value as if it were printed.
    fn charge(&self, value: &Value) -> Result<(), Error> {
        self.weigh(value, DEPTH)
    }

    fn weigh(&self, value: &Value, depth: u32) -> Result<(), Error> {
        if Instant::now() > self.deadline {
            return Err(refusal(format!("takes longer than {} seconds", DEADLINE.as_secs())));
        }
        if let Some(text) = value.as_str() {
            return self.take(text.len() as u64 + ITEM_BYTES);
        }
        // Of a list all items at once, so that a long one is not walked through in vain.
        let items = value.len().unwrap_or(0).max(value.as_bytes().map_or(0, <[u8]>::len)) as u64;
        self.take(items.saturating_mul(ITEM_BYTES).saturating_add(ITEM_BYTES))?;
        for item in children(value) {
            if depth == 0 {
                return Err(refusal(format!("nests lists more than {DEPTH} deep")));
            }
            self.weigh(&item, depth - 1)?;
        }
        Ok(())
    }
}

/// What is in a list or in a map; nothing in anything else.
fn children(value: &Value) -> impl Iterator<Item = Value> {
    let items = match value.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => value.try_iter().ok(),
        _ => None,
    };
    let map = (value.kind() == ValueKind::Map).then(|| value.clone());
    items.into_iter().flatten().flat_map(move |item| {
        let inside = map.as_ref().and_then(|map| map.get_item(&item).ok());
        std::iter::once(item).chain(inside)
    })
}

/// Whether a value is a namespace or has one in it. It has been charged, so it is not deep.
fn holds_namespace(value: &Value) -> bool {
    let named = |it: &Value| it.as_object().is_some_and(|it| it.type_name().ends_with("Namespace"));
    named(value) || children(value).any(|item| holds_namespace(&item))
}

fn meter(state: &State) -> Result<Arc<Meter>, Error> {
    let meter = state.get_temp(METER).and_then(|value| value.downcast_object::<Meter>());
    meter.ok_or_else(|| refusal("is rendered without its limits"))
}

fn refusal(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("the template {what}"))
}

/// The same instructions, with a charge behind each that can make something large, and output in a form that is charged.
fn metered(plain: &Instructions<'static>, main: bool) -> Instructions<'static> {
    let all: Vec<Instruction<'static>> = (0..).map_while(|at| plain.get(at).cloned()).collect();
    let expanded: Vec<Vec<Instruction<'static>>> = all.into_iter().map(expand).collect();
    let start = if main { charge_for_context() } else { Vec::new() };
    // Where each instruction has gone; a jump may lead behind the last.
    let mut places = Vec::with_capacity(expanded.len() + 1);
    places.push(start.len() as u32);
    for group in &expanded {
        places.push(places[places.len() - 1] + group.len() as u32);
    }
    let mut out = Instructions::new(plain.name(), plain.source());
    for instruction in start {
        out.add(instruction);
    }
    for (at, group) in expanded.into_iter().enumerate() {
        for mut instruction in group {
            if let Instruction::Iterate(to)
            | Instruction::Jump(to)
            | Instruction::JumpIfFalse(to)
            | Instruction::JumpIfFalseOrPop(to)
            | Instruction::JumpIfTrueOrPop(to)
            | Instruction::BuildMacro(_, to, _) = &mut instruction
            {
                *to = places[*to as usize];
            }
            let line = plain.get_line(at as u32).unwrap_or(0);
            out.add_with_line(instruction, line as u16);
        }
    }
    out
}

fn apply(filter: &'static str) -> Instruction<'static> {
    // The last number says that the engine looks the filter up anew each time.
    Instruction::ApplyFilter(filter, Some(1), !0)
}

/// The messages are what a template is given; the allowance is reckoned from them before anything else.
fn charge_for_context() -> Vec<Instruction<'static>> {
    vec![Instruction::Lookup("messages"), apply(START), Instruction::DiscardTop]
}

fn expand(instruction: Instruction<'static>) -> Vec<Instruction<'static>> {
    match instruction {
        Instruction::EmitRaw(text) => {
            vec![Instruction::LoadConst(Value::from(text)), Instruction::Emit]
        }
        // The engine reckons constant expressions when it compiles.
        Instruction::LoadConst(ref value) if value.as_object().is_some() => {
            vec![instruction, apply(FLAT)]
        }
        // The namespace lies above the value.
        Instruction::SetAttr(_) => {
            vec![Instruction::Swap, apply(KEEP), Instruction::Swap, instruction]
        }
        Instruction::Add | Instruction::Mul => vec![instruction, apply(FLAT)],
        Instruction::StringConcat
        | Instruction::Slice
        | Instruction::GetItem
        | Instruction::ApplyFilter(..)
        | Instruction::PerformTest(..)
        | Instruction::CallFunction(..)
        | Instruction::CallMethod(..)
        | Instruction::CallObject(..)
        | Instruction::EndCapture
        | Instruction::Eq
        | Instruction::Ne
        | Instruction::Lt
        | Instruction::Lte
        | Instruction::Gt
        | Instruction::Gte
        | Instruction::In
        | Instruction::BuildMap(_)
        | Instruction::BuildList(_) => vec![instruction, apply(CHARGE)],
        other => vec![other],
    }
}

#[cfg(test)]
#[path = "limits/tests.rs"]
mod tests;
