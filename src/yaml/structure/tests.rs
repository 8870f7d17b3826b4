//! A tree judged by a schema: what is found, where, and in which words.

use schemars::JsonSchema;
use serde::Deserialize;

use super::*;
use crate::diagnostic::render;
use crate::source::{SourceFile, Sources, Spanned};
use crate::template::{Expression, Message, Setting, Template};
use crate::units::Duration;
use crate::yaml::{self, Either};

/// A sample with every construct the language uses.
#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is used")]
struct Sample {
    /// What it is called.
    #[schemars(with = "String", regex(pattern = r"^[a-z]+$"))]
    name: Spanned<String>,
    /// How long it may take.
    #[serde(default)]
    timeout: Option<Setting<Duration>>,
    /// How often.
    #[serde(default)]
    #[schemars(range(min = 1, max = 9))]
    count: Option<u32>,
    /// Which way.
    #[serde(default)]
    way: Way,
    /// For grouping.
    #[serde(default)]
    tags: Vec<String>,
    /// What to say.
    #[serde(default)]
    say: Option<Either<Message, Words>>,
    /// Whether.
    #[serde(default)]
    when: Option<Expression>,
    /// Where from.
    #[serde(default)]
    from: Option<Origin>,
    /// By name.
    #[serde(default)]
    inner: indexmap::IndexMap<Spanned<String>, Inner>,
    /// Anything.
    #[serde(default)]
    free: Option<serde_json::Value>,
    #[serde(default)]
    url: Option<Template>,
}

#[derive(JsonSchema, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum Way {
    /// Upwards.
    #[default]
    Up,
    /// Downwards.
    Down,
}

#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is used")]
struct Words {
    /// The text.
    text: Message,
    /// Its volume.
    #[serde(default)]
    volume: Option<f64>,
}

#[derive(JsonSchema, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "only its schema is used")]
enum Origin {
    /// A variable.
    Env(String),
    /// A file.
    File(String),
}

#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is used")]
struct Inner {
    /// True or not.
    flag: bool,
}

fn problems(text: &str) -> String {
    let schema = serde_json::to_value(schemars::SchemaGenerator::default().into_root_schema_for::<Sample>()).expect("a schema");
    let mut sources = Sources::default();
    let source = sources.add(SourceFile::new("x.yaml", text));
    let node = yaml::parse(&sources, source).expect("parses");
    let leaf = |name: &str, node: &Node| match name {
        "Expression" => yaml::from_node::<Expression>(node).err().map(|problem| *problem),
        _ => None,
    };
    let problems = Structure::new(&schema).check(None, &node, Some(&leaf));
    render(&sources, &problems, false).trim_end().to_owned()
}

#[test]
fn what_fits_passes() {
    assert_eq!(
        problems(
            "name: a\ntimeout: 5m\ncount: 9\nway: down\ntags: [a, b]\nsay: hello\nwhen: true\nfrom: {env: HOME}\ninner: {x: {flag: true}}\nfree: [1, {a: 2}]\nurl: x\n"
        ),
        ""
    );
    assert_eq!(problems("name: a\ntimeout: '{{ params.t }}'\nsay: {text: hello, volume: 1}\n"), "");
}

#[test]
fn unknown_keys_are_all_reported_with_what_was_meant() {
    insta::assert_snapshot!(problems("nmae: a\ntimeout: 5s\nflag: true\nvolume: 3\nsay: {txt: x, tags: [a]}\n"), @r"
    error[unknown-key]: unknown key `nmae`
     --> x.yaml:1:1
      |
    1 | nmae: a
      | ^^^^
      |
      = help: did you mean `name`?
      = help: allowed: name, timeout, count, way, tags, say, when, from, inner, free, url

    error[unknown-key]: unknown key `flag`
     --> x.yaml:3:1
      |
    3 | flag: true
      | ^^^^
      |
      = help: allowed: name, timeout, count, way, tags, say, when, from, inner, free, url

    error[unknown-key]: unknown key `volume`
     --> x.yaml:4:1
      |
    4 | volume: 3
      | ^^^^^^
      |
      = help: allowed: name, timeout, count, way, tags, say, when, from, inner, free, url

    error[unknown-key]: unknown key `txt`
     --> x.yaml:5:7
      |
    5 | say: {txt: x, tags: [a]}
      |       ^^^
      |
      = help: did you mean `text`?
      = help: allowed: text, volume

    error[unknown-key]: unknown key `tags`
     --> x.yaml:5:15
      |
    5 | say: {txt: x, tags: [a]}
      |               ^^^^
      |
      = help: `tags` belongs one level up, beside `say`
      = help: allowed: text, volume
    ");
}

#[test]
fn wrong_kinds_say_what_was_found_and_what_is_expected() {
    insta::assert_snapshot!(
        problems("name: 5\ntimeout: [1]\ncount: many\nway: 3\ntags: one\nsay: [x]\nfrom: HOME\ninner: {x: true, y: {flag: 'no'}}\nurl: {a: b}\nwhen:\n"),
        @r"
    error[wrong-type]: expected text, found the number 5
     --> x.yaml:1:7
      |
    1 | name: 5
      |       ^
      |
      = help: put it in quotes if text is meant
      = help: `name`: What it is called.

    error[wrong-type]: expected a duration such as 500ms, 30s, 5m or 1h 30m or a `{{ expression }}`, found a list
     --> x.yaml:2:10
      |
    2 | timeout: [1]
      |          ^^^
      |
      = help: `timeout`: How long it may take.

    error[wrong-type]: expected a whole number, found the text `many`
     --> x.yaml:3:8
      |
    3 | count: many
      |        ^^^^
      |
      = help: `count`: How often.

    error[wrong-type]: expected `up` or `down`, found the number 3
     --> x.yaml:4:6
      |
    4 | way: 3
      |      ^
      |
      = help: `way`: Which way.

    error[wrong-type]: expected a list, found the text `one`
     --> x.yaml:5:7
      |
    5 | tags: one
      |       ^^^
      |
      = help: write a list: `[…]`, or one `- …` a line
      = help: `tags`: For grouping.

    error[wrong-type]: expected text for people or a mapping, found a list
     --> x.yaml:6:6
      |
    6 | say: [x]
      |      ^^^
      |
      = help: `say`: What to say.

    error[wrong-type]: expected a mapping, found `true`
     --> x.yaml:8:12
      |
    8 | inner: {x: true, y: {flag: 'no'}}
      |            ^^^^

    error[wrong-type]: expected `true` or `false`, found the text `no`
     --> x.yaml:8:28
      |
    8 | inner: {x: true, y: {flag: 'no'}}
      |                            ^^^^
      |
      = help: `flag`: True or not.

    error[wrong-type]: expected text in which each `{{ expression }}` holds one value, found a mapping
     --> x.yaml:9:6
      |
    9 | url: {a: b}
      |      ^^^^^^
      |
      = help: text that holds `: ` needs quotes
    "
    );
}

#[test]
fn wrong_values_say_what_is_allowed() {
    insta::assert_snapshot!(problems("name: A b\ntimeout: 5 fortnights\ncount: 10\nway: dwon\nwhen: a ==\nfrom: {env: A, file: b}\n"), @r"
    error[invalid-value]: the text `A b` is not allowed here; it must match ^[a-z]+$
     --> x.yaml:1:7
      |
    1 | name: A b
      |       ^^^
      |
      = help: `name`: What it is called.

    error[invalid-value]: 10 is not between 1 and 9
     --> x.yaml:3:8
      |
    3 | count: 10
      |        ^^
      |
      = help: `count`: How often.

    error[invalid-value]: expected `up` or `down`, found the text `dwon`
     --> x.yaml:4:6
      |
    4 | way: dwon
      |      ^^^^
      |
      = help: did you mean `down`?
      = help: `way`: Which way.

    error[invalid-value]: unexpected end of input, expected expression
     --> x.yaml:5:7
      |
    5 | when: a ==
      |       ^^^^
      |
      = help: `when`: Whether.

    error[conflicting-keys]: `env` and `file` cannot stand together
     --> x.yaml:6:16
      |
    6 | from: {env: A, file: b}
      |        ---     ^^^^
      |        |
      |        the other one
      |
      = help: exactly one of `env` and `file` is allowed
    ");
    insta::assert_snapshot!(problems("name: a\nfrom: {}\ninner: {x: {}}\nsay: {volume: 1}\ncount: '7'\n"), @r"
    error[missing-key]: one of `env` or `file` is missing
     --> x.yaml:2:7
      |
    2 | from: {}
      |       ^^

    error[missing-key]: the key `flag` is missing
     --> x.yaml:3:12
      |
    3 | inner: {x: {}}
      |            ^^ in `x`
      |
      = help: `flag`: True or not.

    error[missing-key]: the key `text` is missing
     --> x.yaml:4:6
      |
    4 | say: {volume: 1}
      |      ^^^^^^^^^^^ in `say`
      |
      = help: `text`: The text.

    error[wrong-type]: expected a whole number, found the text `7`
     --> x.yaml:5:8
      |
    5 | count: '7'
      |        ^^^
      |
      = help: take the quotes away
      = help: `count`: How often.
    ");
}
