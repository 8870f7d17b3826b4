//! The author's SQL: statements, with every `{{ }}` made a bind parameter.
//!
//! A placeholder holds a value and reaches the server apart from the text. That is
//! why none may stand where the lexer sees text: inside quotes, a dollar-quoted body
//! or a comment.

use std::borrow::Cow;
use std::ops::Range;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

use super::classify::{Statement, classify};
use super::lexer::{Token, TokenKind};
use super::placement;
use super::problem::SqlProblem;
use super::split::{StatementSpan, split_with_tokens};
use crate::source::Spanned;
use crate::template::Expression;

/// SQL as the author wrote it. Reading it never fails, so that a playbook's problems
/// can all be shown together; what cannot run is refused by [`SqlText::statements`].
#[derive(Debug, Clone)]
pub struct SqlText {
    /// As written.
    pub written: Spanned<String>,
    statements: Vec<BoundStatement>,
    problems: Vec<SqlProblem>,
}

/// One statement as it is sent.
#[derive(Debug, Clone)]
pub struct BoundStatement {
    /// The text with `$1`, `$2` … in place of the placeholders.
    pub text: String,
    /// What the parameters hold, `$1` first.
    pub expressions: Vec<Expression>,
    /// The statement's bytes in the author's text.
    pub range: Range<usize>,
    /// What it is.
    pub statement: Statement,
    pieces: Vec<Piece>,
}

/// A part of a statement's text and where it comes from.
#[derive(Debug, Clone, Copy)]
struct Piece {
    sent: usize,
    written: usize,
    placeholder: bool,
}

impl SqlText {
    /// Reads the author's text.
    pub fn read(written: Spanned<String>) -> Self {
        let (split, tokens) = split_with_tokens(&written);
        let mut problems = split.problems;
        check_quoted_placeholders(&written, &tokens, &mut problems);
        let statements = split.statements.iter().map(|span| bind(&written, span, &tokens, &mut problems)).collect::<Vec<_>>();
        if statements.is_empty() && problems.is_empty() {
            problems.push(SqlProblem {
                code: "no-statement",
                message: "there is no statement here".into(),
                help: "write at least one SQL statement".into(),
                range: 0..written.len(),
            });
        }
        problems.sort_by_key(|problem| problem.range.start);
        Self { written, statements, problems }
    }

    /// The statements in order, at least one; or why the text cannot be used.
    pub fn statements(&self) -> Result<&[BoundStatement], &[SqlProblem]> {
        if self.problems.is_empty() { Ok(&self.statements) } else { Err(&self.problems) }
    }

    /// Everything that is wrong with the text.
    pub fn problems(&self) -> &[SqlProblem] {
        &self.problems
    }

    /// The statements nothing is wrong with, also when the text as a whole cannot be used.
    pub fn sound_statements(&self) -> impl Iterator<Item = &BoundStatement> {
        let inside = |problem: &SqlProblem, range: &Range<usize>| problem.range.start < range.end && range.start < problem.range.end;
        self.statements.iter().filter(move |statement| !self.problems.iter().any(|problem| inside(problem, &statement.range)))
    }

    /// What all placeholders hold; their references' ranges count in the text.
    pub fn expressions(&self) -> impl Iterator<Item = &Expression> {
        self.statements.iter().flat_map(|statement| &statement.expressions)
    }
}

impl BoundStatement {
    /// The place in the author's text of a byte of the sent text; for a parameter,
    /// where its placeholder begins.
    pub fn origin(&self, offset: usize) -> usize {
        let index = self.pieces.partition_point(|piece| piece.sent <= offset).saturating_sub(1);
        match self.pieces.get(index) {
            Some(piece) if piece.placeholder => piece.written,
            Some(piece) => piece.written.saturating_add(offset - piece.sent).min(self.range.end),
            None => self.range.start,
        }
    }

    /// The same for a position in characters, from 0.
    pub fn origin_of_character(&self, position: usize) -> usize {
        self.origin(self.text.char_indices().nth(position).map_or(self.text.len(), |(offset, _)| offset))
    }

    /// The text with each parameter replaced by what `write` makes of its expression.
    pub fn inlined<E>(&self, mut write: impl FnMut(&Expression) -> Result<String, E>) -> Result<String, E> {
        let mut text = String::with_capacity(self.text.len());
        let mut expressions = self.expressions.iter();
        for (index, piece) in self.pieces.iter().enumerate() {
            let end = self.pieces.get(index + 1).map_or(self.text.len(), |next| next.sent);
            match expressions.as_slice().first().filter(|_| piece.placeholder) {
                Some(expression) => {
                    text.push_str(&write(expression)?);
                    expressions.next();
                }
                None => text.push_str(&self.text[piece.sent..end]),
            }
        }
        Ok(text)
    }

    /// Where the placeholder of a parameter begins; the first is 0.
    pub fn placeholder(&self, parameter: usize) -> usize {
        self.pieces.iter().filter(|piece| piece.placeholder).nth(parameter).map_or(self.range.start, |piece| piece.written)
    }
}

fn bind(written: &Spanned<String>, span: &StatementSpan, tokens: &[Token], problems: &mut Vec<SqlProblem>) -> BoundStatement {
    let first = tokens.partition_point(|token| token.range.start < span.range.start);
    let last = tokens.partition_point(|token| token.range.start < span.range.end);
    let tokens = &tokens[first..last];

    let mut text = String::with_capacity(span.range.len());
    let mut expressions = Vec::new();
    let mut pieces = Vec::new();
    let mut written_until = span.range.start;
    let mut braces = Vec::new();
    for token in tokens {
        match &token.kind {
            TokenKind::Placeholder => match Expression::in_braces(written, token.range.start) {
                Ok((expression, range)) => {
                    pieces.push(Piece { sent: text.len(), written: written_until, placeholder: false });
                    text.push_str(&written[written_until..range.start]);
                    pieces.push(Piece { sent: text.len(), written: range.start, placeholder: true });
                    expressions.push(expression);
                    text.push_str(&format!("${}", expressions.len()));
                    written_until = range.end;
                    braces.push(range);
                }
                Err(reason) => problems.push(bad_expression(reason, token.range.clone())),
            },
            TokenKind::BadPlaceholder(reason) => problems.push(bad_expression(reason.clone(), token.range.clone())),
            _ => {}
        }
    }
    pieces.push(Piece { sent: text.len(), written: written_until, placeholder: false });
    text.push_str(&written[written_until..span.range.end]);

    let statement = classify(&text);
    if statement.takes_parameters {
        placement::check(written, tokens, problems);
    } else {
        problems.extend(braces.into_iter().map(|range| takes_no_value(&statement, range)));
    }
    BoundStatement { text, expressions, range: span.range.clone(), statement, pieces }
}

fn bad_expression(reason: String, range: Range<usize>) -> SqlProblem {
    SqlProblem {
        code: "bad-expression",
        message: reason,
        help: "write a value as `{{ expression }}`, for example `{{ params.limit }}`".into(),
        range,
    }
}

fn takes_no_value(statement: &Statement, range: Range<usize>) -> SqlProblem {
    use super::Kind;
    let help = match statement.kind {
        Kind::Set => "write the value out, or `SELECT set_config('name', {{ value }}, true)`",
        Kind::Do => {
            "set it before with `SELECT set_config('runbook.value', {{ value }}, true)` and read `current_setting('runbook.value')` in the block"
        }
        Kind::Call => "write the arguments out, or call a function with `SELECT f({{ value }})`",
        _ => "write the value out; a bind parameter can stand only in SELECT, INSERT, UPDATE, DELETE, MERGE and VALUES",
    };
    SqlProblem { code: "no-parameters-here", message: format!("{} takes no `{{{{ }}}}` value", statement.kind), help: help.into(), range }
}

fn check_quoted_placeholders(text: &str, tokens: &[Token], problems: &mut Vec<SqlProblem>) {
    for token in tokens {
        let (place, help) = match token.kind {
            TokenKind::Text => (
                "a quoted string",
                "take the quotes away: `name = {{ value }}`, or join with `'prefix-' || {{ value }}`; an array or JSON text that needs two braces takes a space between them",
            ),
            TokenKind::QuotedName => ("a quoted name", "`{{ }}` holds a value, never an identifier: write the name out"),
            TokenKind::DollarText => (
                "a dollar-quoted body",
                "the server reads a body as text, without parameters: set the value before with `SELECT set_config('runbook.value', {{ value }}, true)` and read `current_setting('runbook.value')` in the body",
            ),
            TokenKind::Comment => ("a comment", "remove the braces from the comment"),
            _ => continue,
        };
        let content = &text[token.range.clone()];
        for (open, close) in [("{{", "}}"), ("{%", "%}")] {
            if let Some(start) = content.find(open)
                && let Some(length) = content[start + 2..].find(close)
            {
                let start = token.range.start + start;
                problems.push(SqlProblem {
                    code: "quoted-placeholder",
                    message: format!("`{open} {close}` inside {place} is text, not a value"),
                    help: help.into(),
                    range: start..start + length + 4,
                });
            }
        }
    }
}

impl<'de> Deserialize<'de> for SqlText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::<String>::deserialize(deserializer).map(Self::read)
    }
}

impl JsonSchema for SqlText {
    fn schema_name() -> Cow<'static, str> {
        "SqlText".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "SQL, one or more statements. `{{ expression }}` is a bind parameter: it holds a value, never a name, and stands outside of quotes."
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::Span;

    fn read(text: &str) -> SqlText {
        SqlText::read(Spanned::new(text.into(), Span::default()))
    }

    fn sent(text: &str) -> Vec<(String, Vec<String>)> {
        let sql = read(text);
        let statements = sql.statements().unwrap_or_else(|problems| panic!("{text}: {problems:?}"));
        statements
            .iter()
            .map(|statement| {
                (statement.text.clone(), statement.expressions.iter().map(|expression| expression.text.value.clone()).collect())
            })
            .collect()
    }

    #[test]
    fn placeholders_become_parameters_numbered_by_statement() {
        assert_eq!(
            sent("UPDATE t SET a = {{ params.a }}, b={{params.b}};\nDELETE FROM t WHERE c = ANY({{ params.c }})"),
            [
                ("UPDATE t SET a = $1, b=$2".into(), vec!["params.a".into(), "params.b".into()]),
                ("DELETE FROM t WHERE c = ANY($1)".into(), vec!["params.c".into()]),
            ]
        );
        assert_eq!(sent("SELECT {{ {'k': '}};'}.k }}::text"), [("SELECT $1::text".into(), vec!["{'k': '}};'}.k".into()])]);
        assert_eq!(sent("SELECT extract(day FROM {{ run.started_at }}), a IS DISTINCT FROM {{ params.a }} FROM t").len(), 1);
        assert_eq!(sent("SELECT a FROM t ORDER BY a + {{ params.a }}").len(), 1);
        assert_eq!(sent("VACUUM INTO {{ params.file }}"), [("VACUUM INTO $1".into(), vec!["params.file".into()])]);
    }

    /// Each problem as a compiler would draw it.
    fn problems(text: &str) -> String {
        let sql = read(text);
        assert!(sql.statements().is_err(), "{text}");
        let draw = |problem: &SqlProblem| format!("`{}`: {}\n   {}", &text[problem.range.clone()], problem.message, problem.help);
        sql.problems().iter().map(draw).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_placeholder_inside_text_is_refused() {
        insta::assert_snapshot!(problems("SELECT 'a {{ params.a }}', \"{{ params.b }}\" /* {{ x }} */ -- {{ y }}"), @r##"
        `{{ params.a }}`: `{{ }}` inside a quoted string is text, not a value
           take the quotes away: `name = {{ value }}`, or join with `'prefix-' || {{ value }}`; an array or JSON text that needs two braces takes a space between them
        `{{ params.b }}`: `{{ }}` inside a quoted name is text, not a value
           `{{ }}` holds a value, never an identifier: write the name out
        `{{ x }}`: `{{ }}` inside a comment is text, not a value
           remove the braces from the comment
        `{{ y }}`: `{{ }}` inside a comment is text, not a value
           remove the braces from the comment
        "##);
        insta::assert_snapshot!(problems("DO $$ BEGIN RAISE NOTICE '{{ params.a }}'; END $$"), @r##"
        `{{ params.a }}`: `{{ }}` inside a dollar-quoted body is text, not a value
           the server reads a body as text, without parameters: set the value before with `SELECT set_config('runbook.value', {{ value }}, true)` and read `current_setting('runbook.value')` in the body
        "##);
        insta::assert_snapshot!(problems("SELECT '{{1,2},{3,4}}'::int[]"), @r##"
        `{{1,2},{3,4}}`: `{{ }}` inside a quoted string is text, not a value
           take the quotes away: `name = {{ value }}`, or join with `'prefix-' || {{ value }}`; an array or JSON text that needs two braces takes a space between them
        "##);
        insta::assert_snapshot!(problems("{% if x %} SELECT 1"), @r##"
        `{%`: `{% %}` may stand only in a message; SQL takes only `{{ value }}`
           write a value as `{{ expression }}`, for example `{{ params.limit }}`
        "##);
    }

    #[test]
    fn a_placeholder_is_never_a_name() {
        insta::assert_snapshot!(problems("SELECT * FROM {{ params.t }}; UPDATE {{ params.t }} SET a = 1; INSERT INTO {{ t }} VALUES (1)"), @r##"
        `{{ params.t }}`: a value cannot stand behind FROM, where a table is named
           `{{ }}` holds a value, never an identifier: write the name out; for a choice between a few, write a step for each with `when`
        `{{ params.t }}`: a value cannot stand behind UPDATE, where a table is named
           `{{ }}` holds a value, never an identifier: write the name out; for a choice between a few, write a step for each with `when`
        `{{ t }}`: a value cannot stand behind INTO, where a table is named
           `{{ }}` holds a value, never an identifier: write the name out; for a choice between a few, write a step for each with `when`
        "##);
        insta::assert_snapshot!(problems("SELECT t.{{ params.c }}, a_{{ params.c }}, {{ n }}0 FROM t ORDER BY {{ params.c }} DESC"), @r##"
        `{{ params.c }}`: a value cannot stand as part of a qualified name
           `{{ }}` holds a value, never an identifier: write the name out; for a choice between a few, write a step for each with `when`
        `{{ params.c }}`: a value cannot stand as part of a name or number
           `{{ }}` holds a value, never an identifier: write the name out; for a choice between a few, write a step for each with `when`
        `{{ n }}`: a value cannot stand as part of a name or number
           `{{ }}` holds a value, never an identifier: write the name out; for a choice between a few, write a step for each with `when`
        `{{ params.c }}`: ORDER BY takes columns; a value is the same for every row
           `{{ }}` holds a value, never an identifier: write the name out; for a choice between a few, write a step for each with `when`
        "##);
    }

    #[test]
    fn common_mistakes_name_what_works() {
        insta::assert_snapshot!(problems("SELECT 1 WHERE 1 IN {{ params.ids }} AND now() - interval {{ params.age }} > x"), @r##"
        `{{ params.ids }}`: IN takes a list in parentheses, not one value
           write `= ANY({{ … }})` for a list, or `IN ({{ a }}, {{ b }})`
        `{{ params.age }}`: INTERVAL before a value takes only a quoted string
           write `CAST({{ … }} AS interval)`
        "##);
        insta::assert_snapshot!(problems("SET work_mem = {{ params.mem }}; CREATE INDEX i ON t (a) WHERE b > {{ params.b }}; CALL f({{ x }})"), @r##"
        `{{ params.mem }}`: SET takes no `{{ }}` value
           write the value out, or `SELECT set_config('name', {{ value }}, true)`
        `{{ params.b }}`: CREATE INDEX takes no `{{ }}` value
           write the value out; a bind parameter can stand only in SELECT, INSERT, UPDATE, DELETE, MERGE and VALUES
        `{{ x }}`: CALL takes no `{{ }}` value
           write the arguments out, or call a function with `SELECT f({{ value }})`
        "##);
        insta::assert_snapshot!(problems("SELECT {{ params. }}, {{- params.n }}, {{ never"), @r##"
        `{{ params. }}`: unexpected end of input, expected identifier or integer
           write a value as `{{ expression }}`, for example `{{ params.limit }}`
        `{{- params.n }}`: put a space after `{{`
           write a value as `{{ expression }}`, for example `{{ params.limit }}`
        `{{`: `{{` is never closed by `}}`
           write a value as `{{ expression }}`, for example `{{ params.limit }}`
        "##);
        insta::assert_snapshot!(problems("  -- nothing here\n"), @r##"
        `  -- nothing here
        `: there is no statement here
           write at least one SQL statement
        "##);
    }

    #[test]
    fn places_lead_back_to_what_was_written() {
        let text = "SELECT 1;\nSELECT 'ä', {{ params.long_name }}, {{ params.b }} + nonsense";
        let sql = read(text);
        let statement = &sql.statements().expect("valid")[1];
        assert_eq!(statement.text, "SELECT 'ä', $1, $2 + nonsense");
        for word in ["SELECT", "ä", "nonsense"] {
            let offset = statement.text.find(word).expect("is there");
            assert_eq!(statement.origin(offset), text.rfind(word).expect("is there"), "{word}");
        }
        let position = statement.text.chars().take_while(|c| *c != 'n').count();
        assert_eq!(&text[statement.origin_of_character(position)..], "nonsense");
        assert!(text[statement.placeholder(1)..].starts_with("{{ params.b }}"));
        assert!(text[statement.origin(statement.text.find("$2").expect("is there") + 1)..].starts_with("{{ params.b }}"));
        assert_eq!(statement.origin(usize::MAX), text.len());
    }

    #[test]
    fn deep_nesting_and_long_texts_are_read() {
        let deep = format!("SELECT {}1{}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(read(&deep).statements().is_ok());
        let with = format!("{}SELECT 1{}", "WITH a AS (".repeat(5_000), ") SELECT 1".repeat(5_000));
        assert_eq!(read(&with).statements().expect("valid").len(), 1);
    }

    proptest! {
        #[test]
        fn no_text_panics_and_every_place_is_in_it(text in any_sql()) {
            let sql = read(&text);
            for problem in sql.problems() {
                prop_assert!(text.get(problem.range.clone()).is_some(), "{:?}", problem);
            }
            for statement in sql.statements().unwrap_or_default() {
                prop_assert!(text.get(statement.range.clone()).is_some());
                for offset in 0..statement.text.len() {
                    prop_assert!(statement.range.contains(&statement.origin(offset)));
                }
            }
        }

        #[test]
        fn tokens_cover_the_text(text in any_sql()) {
            let mut end = 0;
            for token in super::super::lexer::tokens(&text) {
                prop_assert_eq!(token.range.start, end);
                prop_assert!(token.range.end > end);
                end = token.range.end;
            }
            prop_assert_eq!(end, text.len());
        }

        #[test]
        fn a_statement_alone_is_the_same_statement(text in any_sql()) {
            let split = super::super::split(&text);
            if split.problems.is_empty() {
                for statement in &split.statements {
                    let alone = &text[statement.range.clone()];
                    let again = super::super::split(alone);
                    prop_assert_eq!(again.statements.len(), 1, "{}", alone);
                    prop_assert_eq!(&again.statements[0].range, &(0..alone.len()));
                }
            }
        }
    }

    /// Fragments that matter to a lexer, in any order, and any other text.
    fn any_sql() -> impl Strategy<Value = String> {
        let fragments = prop::sample::select(vec![
            "'",
            "\"",
            "`",
            "$$",
            "$a$",
            "$1",
            "E'",
            "U&\"",
            "\\",
            "\\.\n",
            "--",
            "/*",
            "*/",
            "\n",
            "\r",
            ";",
            "(",
            ")",
            "{{",
            "}}",
            "{{ a }}",
            "{%",
            "%}",
            ",",
            ".",
            " ",
            "WITH ",
            "AS ",
            "SELECT ",
            "FROM ",
            "INTO ",
            "COPY ",
            "STDIN",
            "CREATE ",
            "FUNCTION ",
            "TRIGGER ",
            "BEGIN ",
            "ATOMIC ",
            "CASE ",
            "END ",
            "UPDATE ",
            "SEARCH ",
            "a",
            "é",
            "1",
            "\u{feff}",
            "\0",
        ]);
        let other = "\\PC{0,5}".boxed();
        prop::collection::vec(prop_oneof![9 => fragments.prop_map(str::to_owned), 1 => other], 0..40).prop_map(|parts| parts.concat())
    }
}
