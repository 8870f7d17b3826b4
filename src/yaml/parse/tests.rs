//! Trees, places and what is refused.

use super::*;
use crate::source::SourceFile;

fn diagnose(yaml: &str) -> String {
    let mut sources = Sources::default();
    let source = sources.add(SourceFile::new("x.yaml", yaml));
    let diagnostics = parse(&sources, source).expect_err("refused");
    let mut text = String::new();
    for diagnostic in diagnostics {
        let written = &yaml[diagnostic.span.start as usize..diagnostic.span.end as usize];
        text.push_str(&format!("{} [{}] {} at {written:?}", sources.location(diagnostic.span), diagnostic.code, diagnostic.message));
        for (span, label) in diagnostic.related {
            text.push_str(&format!("; {label}: {}", sources.location(span)));
        }
        for help in diagnostic.help {
            text.push_str(&format!("; {help}"));
        }
        text.push('\n');
    }
    text
}

fn tree(yaml: &str) -> Node {
    let mut sources = Sources::default();
    let source = sources.add(SourceFile::new("x.yaml", yaml));
    parse(&sources, source).expect("parses")
}

#[test]
fn places_are_what_was_written() {
    let yaml = "é: ['ü', \"x\"]\nlist:\n  - a: 1\n    b: |\n      text\n\n  # comment\n  - &x !!str 7\nempty:\nlast: *x\n";
    let root = tree(yaml);
    let written = |node: &Node| &yaml[node.span.start as usize..node.span.end as usize];
    assert_eq!(root.get("é").map(written), Some("['ü', \"x\"]"));
    let Some(Value::Sequence(items)) = root.get("list").map(|node| &node.value) else { panic!("a list") };
    assert_eq!(written(&items[0]), "a: 1\n    b: |\n      text");
    assert_eq!(items[0].get("b").map(written), Some("|\n      text"));
    assert_eq!((items[1].as_str(), written(&items[1])), (Some("7"), "7"));
    assert_eq!(root.get("empty").map(|node| node.value == Value::Null), Some(true));
    assert_eq!(root.get("last"), Some(&items[1]), "an alias points to what it stands for");
    assert_eq!(written(&root), yaml.trim_end());
}

#[test]
fn line_ends_of_every_system_work() {
    let root = tree("\u{feff}a: 1\r\nb: |\r\n  x\r\n  y\r\nc: z");
    assert_eq!(root.get("b").and_then(Node::as_str), Some("x\ny\n"));
    assert_eq!(root.get("c").and_then(Node::as_str), Some("z"));
}

#[test]
fn what_the_language_refuses_is_reported_all_at_once() {
    insta::assert_snapshot!(diagnose("a: 1\nb: {<<: *a}\n"), @r#"
    x.yaml:2:5 [merge-key] merge keys (`<<`) are not part of the language at "<<"; write the keys out, so that a reviewer sees them where they hold; what all steps share belongs under `defaults`
    x.yaml:2:9 [yaml-syntax] this alias names no anchor at "*"; text that begins with `*` or `&` needs quotes
    "#);
    insta::assert_snapshot!(diagnose("x: &x {k: 1}\na: {<<: *x, 1: b, 1: c}\n? [k]\n: v\n: w\ntrue: t\nb: !env HOME\na: 2\nc: {{ params.x }}\nd: !!int 4\n"), @r#"
    x.yaml:2:5 [merge-key] merge keys (`<<`) are not part of the language at "<<"; write the keys out, so that a reviewer sees them where they hold; what all steps share belongs under `defaults`
    x.yaml:2:13 [key-not-text] a key is text, but `1` is not at "1"; put it in quotes: "1"
    x.yaml:2:19 [key-not-text] a key is text, but `1` is not at "1"; put it in quotes: "1"
    x.yaml:3:3 [key-not-text] a key is text, not a list or a mapping at "[k]"
    x.yaml:5:1 [key-not-text] a key is missing in front of `:` at ""
    x.yaml:6:1 [key-not-text] a key is text, but `true` is not at "true"; put it in quotes: "true"
    x.yaml:7:9 [yaml-tag] the tag `!env` has no meaning here at "HOME"; delete the tag; only `!!str` is known
    x.yaml:9:4 [unquoted-template] `{{ … }}` needs quotes here, for YAML reads a brace as the start of a mapping at "{{ params.x }}"; write "{{ … }}"
    x.yaml:10:10 [yaml-tag] the tag `!!int` has no meaning here at "4"; delete the tag; only `!!str` is known
    x.yaml:8:1 [duplicate-key] the key `a` stands here twice at "a"; first here: x.yaml:2:1
    "#);
    insta::assert_snapshot!(diagnose("a: 1\n---\nb: 2\n"), @r#"x.yaml:2:1 [several-documents] a file holds one YAML document, but a second one starts here at "---"; put it into a file of its own"#);
    insta::assert_snapshot!(diagnose("# nothing\n\n"), @r#"x.yaml:1:1 [empty-document] the file is empty at ""; only blank lines and comments stand in it"#);
    insta::assert_snapshot!(diagnose("---\n...\n"), @r#"x.yaml:1:1 [empty-document] the file is empty at ""; only blank lines and comments stand in it"#);
    insta::assert_snapshot!(diagnose("a: &a [*a]\n"), @r#"x.yaml:1:8 [yaml-syntax] an alias stands inside the value it is an alias of at "*a""#);
}

#[test]
fn broken_yaml_is_explained() {
    insta::assert_snapshot!(diagnose("a:\n\tb: 1"), @r#"x.yaml:2:1 [yaml-syntax] a tab is not allowed in indentation at "\t"; indent with spaces"#);
    insta::assert_snapshot!(diagnose("a: b: c"), @r#"x.yaml:1:5 [yaml-syntax] `:` is not allowed here at ":"; is this line indented deeper than its neighbours, a quote or bracket above never closed, or a text that holds `: ` not quoted?"#);
    insta::assert_snapshot!(diagnose("a: 'it's'"), @r#"x.yaml:1:8 [yaml-syntax] something follows the closing quote at "s"; quote the whole text; inside '…' write '' for a quote, inside "…" write \""#);
    insta::assert_snapshot!(diagnose("a: \"C:\\dir\""), @r#"x.yaml:1:4 [yaml-syntax] a text in double quotes holds an unknown escape at "\""; write \\ for a backslash, or use single quotes"#);
    insta::assert_snapshot!(diagnose("a: \"open\nb: 1"), @r#"x.yaml:1:4 [yaml-syntax] a quoted text is never closed at "\""; is the closing quote missing, or a line of the text not indented?"#);
    insta::assert_snapshot!(diagnose("a: [1, 2\nb: 3"), @r#"x.yaml:2:2 [yaml-syntax] `:` is not allowed here at ":"; still open: x.yaml:1:4; is this line indented deeper than its neighbours, a quote or bracket above never closed, or a text that holds `: ` not quoted?"#);
    insta::assert_snapshot!(diagnose("a: @x"), @r#"x.yaml:1:4 [yaml-syntax] text may not begin with `@` at "@"; put the text in quotes"#);
    insta::assert_snapshot!(diagnose("a: *.sql"), @r#"x.yaml:1:4 [yaml-syntax] this alias names no anchor at "*"; text that begins with `*` or `&` needs quotes"#);
    insta::assert_snapshot!(diagnose("steps:\n - id: a\n   x: 1\n  y: 2"), @r#"x.yaml:4:3 [yaml-syntax] this line does not belong to the list or mapping above it at "y"; does its indentation match the lines it belongs with? is a `:` missing?"#);
    insta::assert_snapshot!(diagnose("a: 1\n b: 2"), @r#"x.yaml:2:3 [yaml-syntax] `:` is not allowed here at ":"; is this line indented deeper than its neighbours, a quote or bracket above never closed, or a text that holds `: ` not quoted?"#);
    insta::assert_snapshot!(diagnose("a: {{ x }}-b\nc: 1"), @r#"x.yaml:1:4 [unquoted-template] `{{ … }}` needs quotes here, for YAML reads a brace as the start of a mapping at "{{ x }}"; write "{{ … }}""#);
    insta::assert_snapshot!(diagnose("a: }"), @r#"x.yaml:1:4 [yaml-syntax] a bracket is not matched at "}"; is a `]`, `}` or `,` missing, or a text with brackets not quoted?"#);
    insta::assert_snapshot!(diagnose("a\nb: c"), @r#"x.yaml:2:2 [yaml-syntax] `:` is not allowed here at ":"; is this line indented deeper than its neighbours, a quote or bracket above never closed, or a text that holds `: ` not quoted?"#);
    insta::assert_snapshot!(diagnose("a: 1\nb"), @r#"x.yaml:2:1 [yaml-syntax] a key is never followed by `:` at "b"; write `key: value`; is a quote or bracket above never closed?"#);
    insta::assert_snapshot!(diagnose("a: \0"), @r#"x.yaml:1:4 [forbidden-character] a NUL byte (U+0000) is not allowed in a YAML file at "\0"; the file is damaged or not text (UTF-16?); save it as UTF-8"#);
    insta::assert_snapshot!(diagnose("a: \u{1b}[0m"), @r#"x.yaml:1:4 [forbidden-character] a control character (U+001B) is not allowed in a YAML file at "\u{1b}"; delete it, or write it as an escape in double quotes, e.g. "\x1b""#);
    insta::assert_snapshot!(diagnose("a: 1\n\u{feff}b: 2"), @r#"x.yaml:2:1 [forbidden-character] a byte-order mark in the middle of the text (U+FEFF) is not allowed in a YAML file at "\u{feff}"; delete it; it stands where two files were joined"#);
}

#[test]
fn deep_nesting_is_refused_and_shallow_is_not() {
    assert!(diagnose(&"[".repeat(100_000)).contains("[too-deep]"));
    assert!(diagnose(&format!("a: {}1{}", "[".repeat(64), "]".repeat(64))).contains("[too-deep]"));
    assert!(diagnose(&"- ".repeat(1000)).contains("[too-deep]"));
    assert!(diagnose(&"{a: ".repeat(1000)).contains("[too-deep]"));
    assert!(diagnose(&"? ".repeat(1000)).contains("[too-deep]"));
    let staircase: String = (0..100).map(|depth| format!("{}k:\n", " ".repeat(depth))).collect();
    assert!(diagnose(&staircase).contains("[too-deep]"));
    tree(&format!("a: {}1{}", "[".repeat(63), "]".repeat(63)));
}

#[test]
fn alias_bombs_do_not_go_off() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", [before.as_str(); 10].join(", ")));
    }
    assert!(diagnose(&bomb).contains("[alias-bomb]"));
    let mut tower = "a0: &a0 [x]\n".to_owned();
    for level in 1..70 {
        tower.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
    }
    assert!(diagnose(&tower).contains("[too-deep]"));
}

#[test]
fn many_keys_are_compared_too() {
    let keys: String = (0..40).map(|n| format!("k{n}: {n}\n")).collect();
    assert!(diagnose(&format!("{keys}k3: again\n")).contains("41:1 [duplicate-key] the key `k3`"));
}
