//! Parsing at load time: finds the placeholders, checks their syntax, and lists
//! what they refer to.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use minijinja::machinery::{self, Token};
use minijinja::syntax::SyntaxConfig;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};

use crate::source::Spanned;

/// Where a value ends up; decides what may stand there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Decides something inside the engine (`when`, `expect`, `outputs`).
    Decision,
    /// A bind parameter of a statement.
    Bind,
    /// One argument of a child process: visible to every user of the machine.
    Argument,
    /// An environment variable of a child process, or an HTTP header, URL or body.
    Private,
    /// Text shown to or sent to people.
    Message,
}

/// A dotted path an expression reads, such as `steps.count.value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Its parts.
    pub path: Vec<String>,
    /// Bytes in the text that holds the expression.
    pub range: Range<usize>,
}

/// A bare minijinja expression, as in `when: steps.a.value > 0`.
#[derive(Debug, Clone)]
pub struct Expression {
    /// The expression's source and the place of the text that holds it.
    pub text: Spanned<String>,
    /// What it reads; ranges count in the holding text.
    pub references: Vec<Reference>,
    /// Whether it speaks of `none`/`null`/`default`, and so deals with NULL itself.
    pub handles_null: bool,
}

impl Expression {
    /// Parses an expression.
    pub fn parse(text: Spanned<String>) -> Result<Self, String> {
        Self::parse_within(text, 0)
    }

    /// Parses the placeholder that opens at `start`; gives also the bytes it takes up,
    /// braces included.
    pub fn in_braces(text: &Spanned<String>, start: usize) -> Result<(Self, Range<usize>), String> {
        let (inner, end) = placeholder(text, start)?;
        let leading = text[inner.clone()].len() - text[inner.clone()].trim_start().len();
        let expression = Spanned::new(text[inner.clone()].trim().to_owned(), text.span);
        Ok((Self::parse_within(expression, inner.start + leading)?, start..end))
    }

    fn parse_within(text: Spanned<String>, offset: usize) -> Result<Self, String> {
        let tokens = tokens(&text, true)?;
        machinery::parse_expr(&text).map_err(|error| syntax_error(&error))?;
        let handles_null =
            tokens.iter().any(|(token, _)| matches!(token, Token::Ident("none" | "None" | "null" | "default" | "undefined" | "defined")));
        let references = references(&tokens, offset);
        Ok(Self { references, handles_null, text })
    }
}

/// Text with `{{ expression }}` placeholders and nothing else of a template language.
#[derive(Debug, Clone)]
pub struct Template {
    /// As written.
    pub text: Spanned<String>,
    /// Literal text and placeholders in turn.
    pub parts: Vec<Part>,
}

/// A piece of a [`Template`].
#[derive(Debug, Clone)]
pub enum Part {
    /// Bytes of the text, taken as they are.
    Text(Range<usize>),
    /// A placeholder and the bytes it takes up, braces included.
    Placeholder(Expression, Range<usize>),
}

impl Template {
    /// Splits text into literal parts and placeholders.
    pub fn parse(text: Spanned<String>) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut position = 0;
        while let Some(found) = text[position..].find("{{") {
            let start = position + found;
            if start > position {
                parts.push(Part::Text(position..start));
            }
            let (expression, range) = Expression::in_braces(&text, start)?;
            position = range.end;
            parts.push(Part::Placeholder(expression, range));
        }
        if position < text.len() {
            parts.push(Part::Text(position..text.len()));
        }
        if parts.iter().any(|part| matches!(part, Part::Text(range) if text[range.clone()].contains("{%"))) {
            return Err("`{% %}` may stand only in a message; here only `{{ value }}` is allowed".into());
        }
        Ok(Self { text, parts })
    }

    /// The placeholders' expressions.
    pub fn expressions(&self) -> impl Iterator<Item = &Expression> {
        self.parts.iter().filter_map(|part| match part {
            Part::Placeholder(expression, _) => Some(expression),
            Part::Text(_) => None,
        })
    }

    /// What all placeholders read.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        self.expressions().flat_map(|expression| &expression.references)
    }

    /// The text, if it holds no placeholder.
    pub fn literal(&self) -> Option<&str> {
        self.expressions().next().is_none().then_some(self.text.value.as_str())
    }
}

/// Text for people: the full template language, `{% if %}` and `{% for %}` included.
#[derive(Debug, Clone)]
pub struct Message {
    /// As written.
    pub text: Spanned<String>,
    /// What it reads.
    pub references: Vec<Reference>,
}

impl Message {
    /// Parses a message.
    pub fn parse(text: Spanned<String>) -> Result<Self, String> {
        static SYNTAX: LazyLock<minijinja::Environment<'static>> = LazyLock::new(minijinja::Environment::new);
        let tokens = tokens(&text, false)?;
        let template = SYNTAX.template_from_str(&text).map_err(|error| syntax_error(&error))?;
        let outer = template.undeclared_variables(false);
        let mut references = references(&tokens, 0);
        references.retain(|reference| outer.contains(&reference.path[0]));
        Ok(Self { text, references })
    }
}

/// A setting that is either written out or one `{{ expression }}`.
#[derive(Debug, Clone)]
pub enum Setting<T> {
    /// Written out.
    Literal(T),
    /// Known when the step runs.
    Template(Template),
}

impl<T> Setting<T> {
    /// What it reads.
    pub fn template(&self) -> Option<&Template> {
        match self {
            Self::Literal(_) => None,
            Self::Template(template) => Some(template),
        }
    }
}

fn syntax_error(error: &minijinja::Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), ToOwned::to_owned)
}

type Spotted<'a> = (Token<'a>, Range<usize>);

/// minijinja reads, compiles and drops long chains such as `a + a + …` by recursion, so
/// that a longer expression would overflow the stack.
const MOST_TOKENS: usize = 500;
/// The same for `{% elif %}`.
const MOST_BLOCKS: usize = 500;

fn tokens(text: &str, expression: bool) -> Result<Vec<Spotted<'_>>, String> {
    let mut tokens = Vec::new();
    let mut length = 0;
    let mut blocks = 0;
    for token in machinery::tokenize(text, expression, SyntaxConfig::default()) {
        let (token, span) = token.map_err(|error| syntax_error(&error))?;
        length = if matches!(token, Token::VariableStart | Token::BlockStart) { 0 } else { length + 1 };
        blocks += usize::from(matches!(token, Token::BlockStart));
        if length > MOST_TOKENS {
            return Err(format!("an expression has at most {MOST_TOKENS} words and signs"));
        }
        if blocks > MOST_BLOCKS {
            return Err(format!("a message has at most {MOST_BLOCKS} `{{% %}}`"));
        }
        tokens.push((token, span.start_offset as usize..span.end_offset as usize));
    }
    Ok(tokens)
}

/// The inside of the placeholder that opens at `start`, and where it ends. The
/// lexer decides, because an expression may hold `}}` in a string or a map.
pub(crate) fn placeholder(text: &str, start: usize) -> Result<(Range<usize>, usize), String> {
    // The template language would take a sign here for white space control, an
    // expression parser for a negative number.
    if text[start + 2..].starts_with(['-', '+']) {
        return Err("put a space after `{{`".into());
    }
    for token in machinery::tokenize(&text[start..], false, SyntaxConfig::default()) {
        let (token, span) = token.map_err(|error| syntax_error(&error))?;
        if matches!(token, Token::VariableEnd) {
            let end = start + span.end_offset as usize;
            return Ok((start + 2..start + span.start_offset as usize, end));
        }
    }
    Err("`{{` is never closed by `}}`".into())
}

/// Every `name(.part | ["part"])*` that is not itself a part, a filter, a test or a
/// keyword argument.
fn references(tokens: &[Spotted<'_>], offset: usize) -> Vec<Reference> {
    const WORDS: &[&str] = &[
        "and",
        "or",
        "not",
        "in",
        "is",
        "if",
        "else",
        "elif",
        "endif",
        "for",
        "endfor",
        "set",
        "endset",
        "true",
        "false",
        "none",
        "True",
        "False",
        "None",
        "recursive",
        "loop",
    ];
    let mut found = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        let Token::Ident(name) = &tokens[index].0 else {
            index += 1;
            continue;
        };
        let follows = index.checked_sub(1).map(|before| &tokens[before].0);
        let after = tokens.get(index + 1).map(|(token, _)| token);
        let negated_test = matches!(follows, Some(Token::Ident("not"))) && index >= 2 && matches!(tokens[index - 2].0, Token::Ident("is"));
        let is_part = matches!(follows, Some(Token::Dot | Token::Pipe | Token::Ident("is"))) || negated_test;
        let is_keyword_or_call = matches!(after, Some(Token::Assign | Token::ParenOpen));
        let is_name = !WORDS.contains(name) && !is_part && !is_keyword_or_call;
        let mut path = vec![(*name).to_owned()];
        let mut range = tokens[index].1.clone();
        index += 1;
        loop {
            match (tokens.get(index), tokens.get(index + 1), tokens.get(index + 2)) {
                (Some((Token::Dot, _)), Some((Token::Ident(part), at)), _) => {
                    path.push((*part).to_owned());
                    range.end = at.end;
                    index += 2;
                }
                (Some((Token::BracketOpen, _)), Some((part @ (Token::Str(_) | Token::String(_)), _)), Some((Token::BracketClose, at))) => {
                    path.push(match part {
                        Token::Str(text) => (*text).to_owned(),
                        Token::String(text) => text.to_string(),
                        _ => continue,
                    });
                    range.end = at.end;
                    index += 3;
                }
                _ => break,
            }
        }
        if is_name {
            found.push(Reference { path, range: offset + range.start..offset + range.end });
        }
    }
    found
}

macro_rules! written_as_template {
    ($type:ident, $description:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::parse(Spanned::<String>::deserialize(deserializer)?).map_err(D::Error::custom)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $description })
            }
        }
    };
}

written_as_template!(Template, "text in which each `{{ expression }}` holds one value");
written_as_template!(Message, "text for people; the whole template language is allowed");

/// Also a bare `true`, `false` or number, which YAML does not read as text.
impl<'de> Deserialize<'de> for Expression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Spanned::<serde_json::Value>::deserialize(deserializer)?;
        let text = match written.value {
            serde_json::Value::String(text) => text,
            value @ (serde_json::Value::Bool(_) | serde_json::Value::Number(_)) => value.to_string(),
            other => return Err(D::Error::custom(format!("an expression is text, not {other}"))),
        };
        if text.trim_start().starts_with("{{") {
            return Err(D::Error::custom(format!(
                "an expression is written without braces here: `{}`",
                text.trim().trim_matches(['{', '}']).trim()
            )));
        }
        Self::parse(Spanned::new(text, written.span)).map_err(D::Error::custom)
    }
}

impl JsonSchema for Expression {
    fn schema_name() -> Cow<'static, str> {
        "Expression".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "boolean", "number"], "description": "an expression, without braces, such as `steps.count.value == 0`" })
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Setting<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Spanned::<serde_json::Value>::deserialize(deserializer)?;
        match written.value {
            serde_json::Value::String(text) if text.contains("{{") => {
                Template::parse(Spanned::new(text, written.span)).map(Self::Template).map_err(D::Error::custom)
            }
            value => serde_json::from_value(value).map(Self::Literal).map_err(D::Error::custom),
        }
    }
}

impl<T: JsonSchema> JsonSchema for Setting<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("{}OrTemplate", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let literal = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [literal, { "type": "string", "pattern": r"\{\{", "description": "a `{{ expression }}`" }] })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Values;
    use super::*;
    use crate::source::Span;

    fn paths(text: &str) -> Vec<String> {
        let expression = Expression::parse(Spanned::new(text.into(), Span::default())).expect("parses");
        expression.references.iter().map(|reference| reference.path.join("/")).collect()
    }

    #[test]
    fn references_are_paths_and_nothing_else() {
        assert_eq!(paths("steps.a.value <= params.limit * 2"), ["steps/a/value", "params/limit"]);
        assert_eq!(paths("steps['pre-check'].rows[0].n"), ["steps/pre-check/rows"]);
        assert_eq!(paths("run.started_at | date('%Y') is not none and not x"), ["run/started_at", "x"]);
        assert_eq!(paths("value > 1 if item is defined else 2"), ["value", "item"]);
    }

    #[test]
    fn a_placeholder_may_hold_braces() {
        let template = Template::parse(Spanned::new("a {{ {'k': {'v': '}}'}}.k.v }} b".into(), Span::default())).expect("parses");
        assert_eq!(template.parts.len(), 3);
        assert!(Template::parse(Spanned::new("{{ never closed".into(), Span::default())).is_err());
        assert!(Template::parse(Spanned::new("{{- params.n }}".into(), Span::default())).is_err(), "neither trimmed nor negated");
        assert!(Template::parse(Spanned::new("{% if x %}".into(), Span::default())).is_err());
    }

    #[test]
    fn long_chains_are_refused_before_they_overflow_the_stack() {
        let message = |text: String| Message::parse(Spanned::new(text, Span::default()));
        let expression = |text: String| Expression::parse(Spanned::new(text, Span::default()));
        for (start, link, end) in [
            ("", "not ", "true"),
            ("", "-", "1"),
            ("a", ".b", ""),
            ("a", "[0]", ""),
            ("1", "+1", ""),
            ("true", " and true", ""),
            ("1", "|abs", ""),
            ("'a'", "~'a'", ""),
            ("1", " if 1 else 1", ""),
        ] {
            let chain = |links: usize| format!("{start}{}{end}", link.repeat(links));
            assert!(expression(chain(100_000)).is_err(), "{link}");
            assert!(message(format!("{{{{ {} }}}}", chain(100_000))).is_err(), "{link}");
            let longest = (50..=MOST_TOKENS).rev().find_map(|links| expression(chain(links)).ok());
            let longest = longest.unwrap_or_else(|| panic!("{link}: fifty links are too many"));
            // Whatever it gives, it comes to an end.
            let _ = Values::new().evaluate(&longest);
        }
        assert!(message(format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(100_000))).is_err());
        assert!(message("{% if a %}{% endif %}{{ b }}".repeat(200)).is_ok());
        assert!(message("{{ b }}".repeat(10_000)).is_ok());
    }

    #[test]
    fn loop_variables_of_a_message_are_its_own() {
        let message =
            Message::parse(Spanned::new("{% for r in steps.a.rows %}{{ r.n }}{% endfor %}{{ params.x }}".into(), Span::default()))
                .expect("parses");
        let paths: Vec<_> = message.references.iter().map(|reference| reference.path.join(".")).collect();
        assert_eq!(paths, ["steps.a.rows", "params.x"]);
    }
}
