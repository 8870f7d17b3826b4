//! Statements of a text, and what in it cannot be sent to a server.

use std::ops::Range;

use super::lexer::{Token, TokenKind, tokens, tokens_from};
use super::problem::SqlProblem;

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementSpan {
    /// Its bytes in the text, from the first word (or the optimizer hint before it) to
    /// the last, without the semicolon.
    pub range: Range<usize>,
}

/// A text cut into statements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    /// The statements in order; empty ones are left out.
    pub statements: Vec<StatementSpan>,
    /// What is wrong with the text as a whole.
    pub problems: Vec<SqlProblem>,
    /// Behind the last semicolon that ends a statement; what follows may go on.
    pub ended: usize,
}

/// Cuts text into statements.
pub fn split(text: &str) -> Split {
    split_with_tokens(text).0
}

/// The statements and the tokens they are made of.
pub(super) fn split_with_tokens(text: &str) -> (Split, Vec<Token>) {
    let mut splitter = Splitter { text, tokens: tokens(text), current: Current::default(), split: Split::default() };
    splitter.run();
    (splitter.split, splitter.tokens)
}

struct Splitter<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    current: Current<'a>,
    split: Split,
}

/// The statement being read.
#[derive(Default)]
struct Current<'a> {
    start: Option<usize>,
    end: usize,
    hint: Option<usize>,
    open: Vec<Range<usize>>,
    /// Words outside of parentheses; only the first ones decide anything.
    words: Vec<&'a str>,
    /// `BEGIN` and `CASE` inside a routine's or trigger's body.
    body: usize,
}

impl<'a> Splitter<'a> {
    fn run(&mut self) {
        if let Some(at) = self.text.find('\0') {
            self.problem("nul-byte", "a NUL byte cannot be part of SQL", "remove it; PostgreSQL text cannot hold it either", at..at + 1);
        }
        let mut index = 0;
        while index < self.tokens.len() {
            self.token(index);
            index += 1;
        }
        self.finish();
    }

    fn token(&mut self, index: usize) {
        let Token { kind, range } = self.tokens[index].clone();
        match kind {
            TokenKind::Space => return,
            TokenKind::Comment => {
                // Planner hints work only in front of the statement.
                if self.text[range.clone()].starts_with("/*+") && self.current.start.is_none() {
                    self.current.hint.get_or_insert(range.start);
                }
                return;
            }
            TokenKind::Semicolon if self.current.open.is_empty() && self.current.body == 0 => {
                self.split.ended = range.end;
                if self.finish() {
                    self.skip_copy_data(index);
                }
                return;
            }
            TokenKind::MetaCommand => return self.meta_command(range),
            TokenKind::Open => self.current.open.push(range.clone()),
            TokenKind::Close => {
                self.current.open.pop();
            }
            TokenKind::Word => self.word(index),
            TokenKind::Unterminated(what) => {
                let opening = range.start..self.text[range.start..].find('\n').map_or(range.end, |length| range.start + length);
                self.problem("unterminated", format!("this {what} is never closed"), "close it, or remove what opens it", opening);
            }
            _ => {}
        }
        self.current.start.get_or_insert(self.current.hint.unwrap_or(range.start));
        self.current.end = range.end;
    }

    fn word(&mut self, index: usize) {
        let word = &self.text[self.tokens[index].range.clone()];
        if self.current.open.is_empty() && self.current.words.len() < 64 {
            self.current.words.push(word);
        }
        let qualified = index.checked_sub(1).is_some_and(|before| self.tokens[before].kind == TokenKind::Dot);
        if qualified {
            return;
        }
        if self.current.body > 0 {
            if word.eq_ignore_ascii_case("case") {
                self.current.body += 1;
            } else if word.eq_ignore_ascii_case("end") {
                self.current.body -= 1;
            }
        } else if word.eq_ignore_ascii_case("begin") && self.opens_body(index) {
            self.current.body = 1;
        }
    }

    /// `BEGIN ATOMIC` of a routine, `BEGIN` of an SQLite trigger; not something that
    /// is called so.
    fn opens_body(&self, begin: usize) -> bool {
        let next = self.tokens[begin + 1..].iter().find(|token| !token.kind.is_trivia());
        let next = next.map_or("", |token| &self.text[token.range.clone()]);
        match created(&self.current.words) {
            Some("trigger") => ["select", "insert", "update", "delete", "replace", "with"].iter().any(|w| next.eq_ignore_ascii_case(w)),
            Some(_) => next.eq_ignore_ascii_case("atomic"),
            None => false,
        }
    }

    /// Ends the statement; says whether psql would read data lines behind it.
    fn finish(&mut self) -> bool {
        let current = std::mem::take(&mut self.current);
        let Some(start) = current.start else { return false };
        if let Some(open) = current.open.first() {
            self.problem(
                "unclosed-parenthesis",
                "this parenthesis is never closed",
                "close it; until then the statement reaches to the end of the text",
                open.clone(),
            );
        }
        let range = start..current.end;
        self.split.statements.push(StatementSpan { range: range.clone() });
        self.copy(&current.words, range)
    }

    fn copy(&mut self, words: &[&str], range: Range<usize>) -> bool {
        if !words.first().is_some_and(|word| word.eq_ignore_ascii_case("copy")) {
            return false;
        }
        let target = words.windows(2).find_map(|pair| {
            let direction = pair[0].to_ascii_lowercase();
            matches!(direction.as_str(), "from" | "to").then(|| (direction, pair[1].to_ascii_lowercase()))
        });
        match target.as_ref().map(|(direction, target)| (direction.as_str(), target.as_str())) {
            Some((_, "program")) => {
                self.problem(
                    "copy-program",
                    "COPY … PROGRAM runs a shell command on the database server",
                    "no reviewer would look for that in SQL: use a `shell` step, which runs on this machine",
                    range,
                );
                false
            }
            Some(("from", "stdin")) => {
                self.problem(
                    "copy-stdin",
                    "COPY … FROM STDIN takes its rows from the client that sends it",
                    "use INSERT … VALUES, or an `import` step for a file of rows",
                    range,
                );
                true
            }
            Some(("to", "stdout")) => {
                self.problem(
                    "copy-stdout",
                    "COPY … TO STDOUT sends its rows in a form only psql reads",
                    "write the rows as a `query`, or use a `pg_dump` step with `tables`",
                    range,
                );
                false
            }
            _ => false,
        }
    }

    fn meta_command(&mut self, range: Range<usize>) {
        let name = self.text[range.clone()].split_whitespace().next().unwrap_or("\\");
        self.problem(
            "psql-meta-command",
            format!("`{name}` is a command of psql, not SQL"),
            "statements go to the server over the engine's own connection, without psql: remove the line, or put what it does into a step",
            range,
        );
    }

    /// Passes over the rows that a dump holds after `COPY … FROM STDIN;`.
    fn skip_copy_data(&mut self, semicolon: usize) {
        let mut end = self.tokens[semicolon].range.end;
        for line in self.text[end..].split_inclusive('\n') {
            end += line.len();
            if line.trim_end() == "\\." {
                break;
            }
        }
        self.tokens.truncate(semicolon + 1);
        self.tokens.extend(tokens_from(self.text, end));
    }

    fn problem(&mut self, code: &'static str, message: impl Into<String>, help: &str, range: Range<usize>) {
        self.split.problems.push(SqlProblem { code, message: message.into(), help: help.into(), range });
    }
}

/// What kind of thing with a body a `CREATE` statement makes.
fn created(words: &[&str]) -> Option<&'static str> {
    let mut words = words.iter();
    words.next().filter(|word| word.eq_ignore_ascii_case("create"))?;
    words.find_map(|word| match word.to_ascii_lowercase().as_str() {
        "or" | "replace" | "temp" | "temporary" | "constraint" => None,
        "function" => Some(Some("function")),
        "procedure" => Some(Some("procedure")),
        "trigger" => Some(Some("trigger")),
        _ => Some(None),
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str) -> Vec<&str> {
        let split = split(text);
        assert_eq!(split.problems, [], "{text}");
        split.statements.iter().map(|statement| &text[statement.range.clone()]).collect()
    }

    #[test]
    fn statements_end_where_the_server_ends_them() {
        for (text, expected) in [
            ("", &[] as &[&str]),
            (" ;; -- nothing\n ; /* ; */", &[]),
            ("SELECT 1; SELECT 2", &["SELECT 1", "SELECT 2"]),
            ("-- first\nSELECT 1 -- one\n; -- last; not a statement", &["SELECT 1"]),
            ("SELECT ';', \"a;b\", E'it\\';' ; SELECT 2", &["SELECT ';', \"a;b\", E'it\\';'", "SELECT 2"]),
            ("SELECT 'it''s;' ;SELECT 'back\\' ;", &["SELECT 'it''s;'", "SELECT 'back\\'"]),
            ("SELECT E'a'\n  -- and\n 'b\\';' ; SELECT 2", &["SELECT E'a'\n  -- and\n 'b\\';'", "SELECT 2"]),
            ("/* a /* nested; */ ; */ SELECT 1;", &["SELECT 1"]),
            ("DO $$ BEGIN; PERFORM 1; END $$; SELECT 2", &["DO $$ BEGIN; PERFORM 1; END $$", "SELECT 2"]),
            ("DO $a$ $$;$$ $b$;$b$ $a$; SELECT $1;", &["DO $a$ $$;$$ $b$;$b$ $a$", "SELECT $1"]),
            ("SELECT a$b;SELECT c$b", &["SELECT a$b", "SELECT c$b"]),
            ("SELECT 1;SELECT `a;b`;", &["SELECT 1", "SELECT `a;b`"]),
            ("/*+ SeqScan(t) */ SELECT 1", &["/*+ SeqScan(t) */ SELECT 1"]),
            (
                "CREATE RULE r AS ON INSERT TO t DO ALSO (SELECT 1; SELECT 2); SELECT 3",
                &["CREATE RULE r AS ON INSERT TO t DO ALSO (SELECT 1; SELECT 2)", "SELECT 3"],
            ),
            ("SELECT U&'\\' ; SELECT N'\\' ; SELECT x'1f'", &["SELECT U&'\\'", "SELECT N'\\'", "SELECT x'1f'"]),
            ("SELECT 'a\r\n;b';\r\nSELECT 2;\r\n", &["SELECT 'a\r\n;b'", "SELECT 2"]),
            ("SELECT 4 --x\rSELECT;", &["SELECT 4 --x\rSELECT"]),
            ("BEGIN; COMMIT; END", &["BEGIN", "COMMIT", "END"]),
            ("SELECT {{ params.x }}; SELECT {{ 'a;b' }}", &["SELECT {{ params.x }}", "SELECT {{ 'a;b' }}"]),
        ] {
            assert_eq!(pieces(text), expected, "{text}");
        }
    }

    #[test]
    fn routine_bodies_are_one_statement() {
        let atomic = "CREATE OR REPLACE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END";
        assert_eq!(pieces(&format!("{atomic}; SELECT 3")), [atomic, "SELECT 3"]);
        let trigger = "CREATE TEMP TRIGGER t AFTER INSERT ON a BEGIN UPDATE b SET c = 1; DELETE FROM d; END";
        assert_eq!(pieces(&format!("{trigger}; SELECT 3")), [trigger, "SELECT 3"]);
        let called_begin = "CREATE FUNCTION begin() RETURNS int LANGUAGE sql AS 'SELECT 1'";
        assert_eq!(pieces(&format!("{called_begin}; SELECT 3")), [called_begin, "SELECT 3"]);
        let postgres_trigger = "CREATE TRIGGER begin AFTER INSERT ON a EXECUTE FUNCTION f()";
        assert_eq!(pieces(&format!("{postgres_trigger}; SELECT 3")), [postgres_trigger, "SELECT 3"]);
    }

    fn problems(text: &str) -> Vec<String> {
        split(text).problems.iter().map(|problem| format!("{} at `{}`", problem.message, &text[problem.range.clone()])).collect()
    }

    #[test]
    fn what_only_psql_understands_is_named() {
        assert_eq!(problems("\\set ON_ERROR_STOP on\nSELECT 1;\n"), ["`\\set` is a command of psql, not SQL at `\\set ON_ERROR_STOP on`"]);
        assert_eq!(
            problems("\\echo it's\nSELECT 1 \\gexec\n"),
            ["`\\echo` is a command of psql, not SQL at `\\echo it's`", "`\\gexec` is a command of psql, not SQL at `\\gexec`",]
        );
        assert_eq!(
            problems("COPY t (a) FROM PROGRAM 'curl x'"),
            ["COPY … PROGRAM runs a shell command on the database server at `COPY t (a) FROM PROGRAM 'curl x'`"]
        );
        assert_eq!(
            problems("copy (select 1) to stdout"),
            ["COPY … TO STDOUT sends its rows in a form only psql reads at `copy (select 1) to stdout`"]
        );
        assert_eq!(problems("COPY program FROM '/srv/x.csv'"), [] as [&str; 0]);
    }

    #[test]
    fn rows_of_a_dump_are_passed_over() {
        let text = "COPY t FROM stdin;\n1\tit's\n2\t$$\n\\.\nSELECT 2;";
        let split = split(text);
        let statements: Vec<_> = split.statements.iter().map(|statement| &text[statement.range.clone()]).collect();
        assert_eq!(statements, ["COPY t FROM stdin", "SELECT 2"]);
        assert_eq!(split.problems.len(), 1);
    }

    #[test]
    fn what_is_never_closed_is_shown_where_it_opens() {
        assert_eq!(problems("SELECT 'a;\nSELECT 2"), ["this string is never closed at `'a;`"]);
        assert_eq!(problems("SELECT 1; /* a /* b */"), ["this comment is never closed at `/* a /* b */`"]);
        assert_eq!(problems("DO $x$ END $y$;"), ["this dollar-quoted string is never closed at `$x$ END $y$;`"]);
        assert_eq!(problems("SELECT \"a"), ["this quoted name is never closed at `\"a`"]);
        assert_eq!(problems("SELECT E'a'\n'b\\'"), ["this string is never closed at `E'a'`"]);
        assert_eq!(problems("SELECT (1; SELECT 2"), ["this parenthesis is never closed at `(`"]);
        assert_eq!(problems("SELECT '\0'"), ["a NUL byte cannot be part of SQL at `\0`"]);
    }
}
