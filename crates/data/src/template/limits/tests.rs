use crate::format::Message;
use crate::template::{CHAT, ChatTemplate, SpecialTokens};

fn render(source: &str) -> Result<String, String> {
    let template =
        ChatTemplate::parse(source, SpecialTokens::default()).map_err(|error| error.to_string())?;
    let messages = [Message::new("user", "Who?"), Message::new("assistant", "Minsu.")];
    template.render(&messages, false).map_err(|error| error.to_string())
}

#[track_caller]
fn refused(source: &str, why: &str) {
    let found = render(source).unwrap_err();
    assert!(found.contains(why), "{found}");
}

const TOO_MUCH: &str = "the template makes more text than its input can account for";

#[test]
fn loops_without_an_end_run_out_of_fuel() {
    let (open, close) = ("{% for a in r %}".repeat(4), "{% endfor %}".repeat(4));
    refused(&format!("{{% set r = range(999) %}}{open}{close}"), "fuel");
    let recursion = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    refused(recursion, "recursion limit");
}

#[test]
fn text_that_doubles_is_refused() {
    let forty = "{% set ns.s = ns.s ~ ns.s %}".repeat(40);
    refused(&format!("{{% set ns = namespace(s='x') %}}{forty}{{{{ ns.s|length }}}}"), TOO_MUCH);
    let plus = forty.replace('~', "+");
    refused(&format!("{{% set ns = namespace(s='x') %}}{plus}{{{{ ns.s|length }}}}"), TOO_MUCH);
    let list = format!("{{% set ns = namespace(s=[1]) %}}{plus}{{{{ ns.s|length }}}}");
    refused(&list, TOO_MUCH);
    // By its own arguments, by captures, and in one expression.
    refused("{% macro f(s) %}{{ f(s ~ s) }}{% endmacro %}{{ f('xxxxxxxxxxxx') }}", TOO_MUCH);
    let capture = "{% set s %}{{ s }}{{ s }}{% endset %}".repeat(40);
    refused(&format!("{{% set s = 'x' %}}{capture}"), TOO_MUCH);
    refused("{{ ('x' * 90000000)|upper }}", TOO_MUCH);
    refused("{{ ([1] * 1000000000)|list|length }}", TOO_MUCH);
}

#[test]
fn filters_that_make_much_of_little_are_refused() {
    let many = "{% set s = 'x' * 30000 %}";
    refused(&format!("{many}{{{{ s|replace('x', s) }}}}"), TOO_MUCH);
    refused(&format!("{many}{{{{ s.replace('x', s) }}}}"), TOO_MUCH);
    refused(&format!("{many}{{{{ s|replace('', s) }}}}"), TOO_MUCH);
    refused(&format!("{many}{{{{ s|list|join(s) }}}}"), TOO_MUCH);
    refused(&format!("{many}{{{{ s.join(s|list) }}}}"), TOO_MUCH);
    refused("{{ 'x'|indent(1000000000) }}", "asks for 1000000000 parts; 100000 are allowed");
    refused("{{ 'x'|indent(width=1000000000) }}", "asks for 1000000000 parts");
    refused("{{ [1]|batch(1000000000, 'x') }}", "asks for 1000000000 parts");
    refused("{{ [1]|slice(1000000000)|list }}", "asks for 1000000000 parts");
    refused("{{ [1]|tojson(indent=1000000000) }}", "tojson: an indent of 1000000000");
}

#[test]
fn formats_are_held_to_the_width_of_their_fields() {
    let wide = "has a format with a width above 999";
    refused("{{ '%1000000000d'|format(1) }}", wide);
    refused("{{ '%.1000f'|format(1.5) }}", wide);
    refused("{{ '%(a)1000d'|format(a=1) }}", wide);
    refused("{{ '%*d'|format(1000000000, 1) }}", wide);
    refused("{{ '{:1000}'.format(1) }}", wide);
    refused("{{ '{0:>99999999999999999999999}'.format(1) }}", wide);
    refused("{{ '{:.1000e}'.format(1.5) }}", wide);
    let many = "{% set s = 'x' * 30000 %}";
    refused(&format!("{many}{{{{ ('{{0}}' * 30000).format(s) }}}}"), TOO_MUCH);
    refused(&format!("{many}{{{{ ('%(s)s' * 30000)|format(s=s) }}}}"), TOO_MUCH);
    refused("{{ ('{:999}' * 100000).format(1) }}", TOO_MUCH);
    // Numbers of other kinds are no widths.
    for (source, text) in [
        ("{{ '2026: {0:03}, {k}'.format(7, k='나') }}", "2026: 007, 나"),
        ("{{ '%s in 2026, %3d%%'|format('나', 7) }}", "나 in 2026,   7%"),
        ("{{ '{:,}'.format(1234567) }}", "1,234,567"),
    ] {
        assert_eq!(render(source).as_deref(), Ok(text));
    }
    // The engine cuts this one inside a character.
    refused(
        "{{ '{0[가]}'.format([1]) }}",
        "the template is one that the engine fails at (end byte",
    );
}

#[test]
fn what_would_take_long_or_much_in_pieces_is_refused() {
    let many = "{% set s = 'x' * 3000000 %}";
    for source in [
        "s|list",
        "s.split('x')",
        "s|split('x')",
        "(s|replace('x', '\n'))|lines",
        "(' x' * 1500000).split()|length",
    ] {
        refused(&format!("{many}{{{{ ({source})|length }}}}"), TOO_MUCH);
    }
    refused(&format!("{many}{{{{ s.replace('x', '\n').splitlines()|length }}}}"), TOO_MUCH);
    let set = "{% set t = 'y' * 9000 ~ 'x' %}";
    for source in ["s.strip(t)", "s.lstrip(t)", "s.rstrip(t)", "s|trim(t)"] {
        refused(&format!("{many}{set}{{{{ {source}|length }}}}"), TOO_MUCH);
    }
    // A map's pairs have no length until they are walked through.
    let pairs = "{'a': 1, 'b': 2, 'c': 3}.items()";
    refused(&format!("{{% set s = 'x' * 30000000 %}}{{{{ {pairs}|join(s)|length }}}}"), TOO_MUCH);
    for (source, text) in [
        ("{{ '가나'.count('') }} {{ 'abab'.count('ab') }}", "3 2"),
        ("{{ 'a\nb'.splitlines()|join(',') }}{{ ' a b '.split()|join(',') }}", "a,ba,b"),
        ("{{ 'a,b,c'|split(',', 1)|join(';') }}{{ 'a b'|split|join(';') }}", "a;b,ca;b"),
        (
            "{{ '--a-'.strip('-') }}{{ '##b'|trim('#') }}{{ ' c '|trim }}{{ 'xd'.lstrip('x') }}",
            "abcd",
        ),
        ("{{ '가나'|list|join('.') }}{{ 'a\nb'|lines|length }}", "가.나2"),
    ] {
        assert_eq!(render(source).as_deref(), Ok(text), "{source}");
    }
}

#[test]
fn values_that_no_walk_comes_to_the_end_of_are_refused() {
    let deeper = "{% set ns.l = [ns.l] %}".repeat(60);
    refused(&format!("{{% set ns = namespace(l=1) %}}{deeper}"), "nests lists more than 48 deep");
    let wider = "{% set ns.l = [ns.l, ns.l] %}".repeat(40);
    refused(&format!("{{% set ns = namespace(l=1) %}}{wider}"), TOO_MUCH);
    refused("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}", "puts a namespace into");
    refused("{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns }}", "puts a namespace into");
}

#[test]
fn no_template_reaches_its_own_limits() {
    refused("{{ 1|map('#start')|list }}", "");
    let again = "{% for x in [[1]] %}{{ x|map('#start')|list }}{% endfor %}";
    let forty = "{% set ns.s = ns.s ~ ns.s %}".repeat(40);
    refused(&format!("{again}{{% set ns = namespace(s='x') %}}{forty}"), TOO_MUCH);
    refused("{% include 'chat_template' %}", "");
}

#[test]
fn the_source_is_bounded() {
    refused(&"x".repeat((1 << 20) + 1), "is 1048577 bytes long; 1048576 are allowed");
    refused(&"{{ 2 * 2 }}".repeat(17), "multiplies 17 times; 16 are allowed");
    assert_eq!(render(&"x".repeat(1000)).unwrap().len(), 1000);
}

#[test]
fn what_is_no_token_is_an_error_and_no_endless_loop() {
    for source in [
        "{{ 2 ! 3 }}",
        "{% for m in messages ? %}",
        "{{ 'open }}",
        "a{{ \u{1F600} }}",
        "{%}",
        "{%}{% x %}",
    ] {
        assert!(ChatTemplate::parse(source, SpecialTokens::default()).is_err(), "{source}");
    }
}

#[test]
fn jumps_lead_where_they_led() {
    for (source, expected) in [
        ("a{% if false %}b{% elif messages %}c{% else %}d{% endif %}e", "ace"),
        (
            "{% for m in messages %}{{ loop.index0 + 1 }}{% if loop.last %}!{% endif %}{% endfor %}",
            "12!",
        ),
        ("{% for m in [] %}x{% else %}none{% endfor %}", "none"),
        (
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
            "assistant",
        ),
        (
            "{% for m in messages if m['role'] == 'user' %}{{ m.content }}{% break %}{% endfor %}",
            "Who?",
        ),
        (
            "{% macro f(a, b='z') %}<{{ a ~ b }}>{% endmacro %}{{ f('x') }}{{ f('x', b='y') }}",
            "<xz><xy>",
        ),
        ("{% set x %}a{{ 1 + 1 }}{% endset %}{{ x|upper }}{{ x[1] }}{{ x[::-1] }}", "A222a"),
        ("{{ 'yes' if messages|length == 2 and not missing else 'no' }}", "yes"),
        ("{{ missing or 'default' }}{{ missing is defined and missing.x }}", "defaultFalse"),
        ("{% block b %}in{{ 1 }}{% endblock %}out", "in1out"),
        ("{% filter upper %}a{{ 'b' }}{% endfilter %}{{ ['a', 'b']|join(', ') }}", "ABa, b"),
        ("{% call(x) f() %}{{ x }}{% endcall %}", ""),
        ("{{ [1, 2] + [3] }}{{ {'a': [none]}|tojson }}{{ none }}", "[1, 2, 3]{\"a\": [null]}None"),
    ] {
        if source.contains("call(x)") {
            let source = "{% macro f() %}[{{ caller('x') }}]{% endmacro %}".to_owned() + source;
            assert_eq!(render(&source).unwrap(), "[x]");
        } else {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
    }
}

#[test]
fn long_conversations_are_within_the_limits() {
    let template = ChatTemplate::parse(CHAT, SpecialTokens::default()).unwrap();
    let turn = |row: usize| {
        Message::new(if row.is_multiple_of(2) { "user" } else { "assistant" }, "가".repeat(2000))
    };
    let messages: Vec<Message> = (0..5000).map(turn).collect();
    let text = template.render(&messages, true).unwrap();
    assert!(text.len() > 5000 * 6000);
    let one = [Message::new("user", "x".repeat(50_000_000))];
    assert!(template.render(&one, true).unwrap().len() > 50_000_000);
}
