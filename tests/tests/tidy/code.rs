//! Just enough of Rust's lexical rules to look at code without its comments and literals.

/// `source` with the contents of comments, strings and character literals blanked out; line breaks stay, so line
/// numbers hold.
pub(crate) fn bare(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let end = match chars[at] {
            '/' if chars.get(at + 1) == Some(&'/') => line_end(&chars, at),
            '/' if chars.get(at + 1) == Some(&'*') => block_comment_end(&chars, at),
            '"' => string_end(&chars, at),
            'r' if !after_word(&chars, at) => match raw_string_end(&chars, at) {
                Some(end) => end,
                None => at,
            },
            '\'' => character_end(&chars, at),
            _ => at,
        };
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where `word` stands as a whole word in `code`, as line numbers from 1.
pub(crate) fn lines_with_word(code: &str, word: &str) -> Vec<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let has = |line: &str| {
        line.match_indices(word).any(|(at, _)| {
            !line[..at].chars().next_back().is_some_and(is_word)
                && !line[at + word.len()..].chars().next().is_some_and(is_word)
        })
    };
    code.lines().enumerate().filter(|(_, line)| has(line)).map(|(at, _)| at + 1).collect()
}

/// A function with a body: its name and the lines it covers, from 1.
pub(crate) struct Function {
    /// The name after `fn`.
    pub(crate) name: String,
    /// The line of `fn`.
    pub(crate) first: usize,
    /// The line of the closing brace.
    pub(crate) last: usize,
}

/// Every function with a body in `code`, which comes from [`bare`].
pub(crate) fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + 3..];
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if name.is_empty() {
            continue; // a function pointer type
        }
        if let Some(length) = body_end(rest) {
            let first = code[..at].matches('\n').count() + 1;
            let last = first + rest[..length].matches('\n').count();
            found.push(Function { name, first, last });
        }
    }
    found
}

/// The offset of the brace that closes the body of the function whose name starts `rest`; none for a declaration.
fn body_end(rest: &str) -> Option<usize> {
    let (mut braces, mut brackets) = (0, 0);
    for (at, c) in rest.char_indices() {
        match c {
            ';' if braces == 0 && brackets == 0 => return None,
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            '{' => braces += 1,
            '}' => {
                braces -= 1;
                if braces == 0 && brackets == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

fn after_word(chars: &[char], at: usize) -> bool {
    at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_') && chars[at - 1] != 'b'
}

fn line_end(chars: &[char], at: usize) -> usize {
    chars[at..].iter().position(|&c| c == '\n').map_or(chars.len(), |length| at + length)
}

fn block_comment_end(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                at += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    at
}

fn string_end(chars: &[char], mut at: usize) -> usize {
    at += 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// The end of the raw string that starts at the `r`, if one does.
fn raw_string_end(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at + 1..].iter().take_while(|&&c| c == '#').count();
    let open = at + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let closes = |at: usize| {
        chars[at] == '"'
            && chars[at + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes
    };
    (open + 1..chars.len()).find(|&at| closes(at)).map(|at| at + 1 + hashes)
}

/// The end of a character literal; `at` itself for a lifetime.
fn character_end(chars: &[char], at: usize) -> usize {
    match (chars.get(at + 1), chars.get(at + 2)) {
        (Some('\\'), _) => {
            let from = at + 3;
            chars[from..].iter().position(|&c| c == '\'').map_or(at, |length| from + length + 1)
        }
        (Some(_), Some('\'')) => at + 3,
        _ => at,
    }
}

#[test]
fn comments_strings_and_literals_are_blanked_and_lines_kept() {
    let source = "let a = \"unsafe \\\" {\"; // unsafe\n/* unsafe /* nested */ unsafe */ let b = '{';\n\
                  let c: &'static str = r#\"unsafe \" {\"#; let d = b\"}\"; unsafe { }\n";
    let code = bare(source);
    assert_eq!(code.matches('\n').count(), source.matches('\n').count());
    assert_eq!(lines_with_word(&code, "unsafe"), [3]);
    assert_eq!(code.matches('{').count(), 1);
    assert!(code.contains("&'static str"), "a lifetime is not a literal: {code}");
    assert_eq!(lines_with_word("deny(unsafe_code)", "unsafe"), [0_usize; 0]);
}

#[test]
fn functions_are_found_with_their_lines() {
    let code = "trait T {\n    fn declared(a: [u8; 3]) -> u8;\n    fn given() {\n        if x { }\n    }\n}\n\
                type F = fn (u8) -> u8;\nfn one() -> [u8; 2] { body }\n";
    let found: Vec<_> = functions(code).into_iter().map(|f| (f.name, f.first, f.last)).collect();
    assert_eq!(found, [("given".to_owned(), 3, 5), ("one".to_owned(), 8, 8)]);
}
