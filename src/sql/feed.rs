//! Statements out of a text that comes line by line and may be larger than memory.
//!
//! Holds no more than the statement that is being read. Where a statement ends is
//! [`split`]'s to say; this decides when it is worth asking.

use super::problem::SqlProblem;
use super::split::split;

/// Takes lines, gives statements.
#[derive(Debug)]
pub struct Feed {
    /// The lines of the statement that is being read.
    text: String,
    /// The number of its first line.
    line: u64,
    /// What ends the string or comment that is open: nothing before it ends a statement.
    awaited: Option<String>,
}

/// A whole statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fed {
    /// Its text, without the semicolon.
    pub text: String,
    /// The line it begins on, from 1.
    pub line: u64,
    /// The next lines are rows for `COPY … FROM STDIN`.
    pub copies: bool,
}

/// What in a text cannot be sent to a server, and the line it is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedError {
    /// From 1.
    pub line: u64,
    /// What it is.
    pub problem: SqlProblem,
}

impl Default for Feed {
    fn default() -> Self {
        Self { text: String::new(), line: 1, awaited: None }
    }
}

impl Feed {
    /// Whether a statement has begun and not ended.
    pub fn is_open(&self) -> bool {
        !self.text.is_empty()
    }

    /// The line that comes next or, within a statement, on which that begins.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// Passes over lines that are no SQL.
    pub fn skip_lines(&mut self, count: u64) {
        self.line += count;
    }

    /// Takes a line with its end; gives the statements that end on it.
    pub fn push(&mut self, line: &str) -> Result<Vec<Fed>, FeedError> {
        if self.text.is_empty() && (line.trim().is_empty() || line.starts_with("--")) {
            self.line += 1;
            return Ok(Vec::new());
        }
        self.text.push_str(line);
        match &self.awaited {
            Some(closing) if !line.contains(closing.as_str()) => return Ok(Vec::new()),
            _ => self.awaited = None,
        }
        if line.contains([';', '\\']) { self.ended() } else { Ok(Vec::new()) }
    }

    /// The statements of the held text that have ended.
    fn ended(&mut self) -> Result<Vec<Fed>, FeedError> {
        let split = split(&self.text);
        let mut copies = None;
        for problem in split.problems {
            match problem.code {
                "unterminated" => self.awaited = Some(closing(&self.text[problem.range.start..])),
                "copy-stdin" => copies = Some(problem.range),
                // The statement may still go on.
                "unclosed-parenthesis" if problem.range.start >= split.ended => {}
                _ => return Err(FeedError { line: self.line_of(problem.range.start), problem }),
            }
        }
        let whole = split.statements.into_iter().map(|statement| statement.range).filter(|range| range.end <= split.ended);
        let fed: Vec<Fed> = whole
            .map(|range| Fed {
                text: self.text[range.clone()].to_owned(),
                line: self.line_of(range.start),
                copies: copies.as_ref() == Some(&range),
            })
            .collect();
        let rest = self.text.split_off(split.ended);
        self.line += lines(&self.text);
        self.text = rest;
        if self.awaited.is_none() && self.text.trim().is_empty() {
            self.line += lines(&self.text);
            self.text.clear();
        }
        Ok(fed)
    }

    fn line_of(&self, offset: usize) -> u64 {
        self.line + lines(&self.text[..offset])
    }
}

fn lines(text: &str) -> u64 {
    text.bytes().filter(|byte| *byte == b'\n').count() as u64
}

/// What ends the string, name or comment that begins there.
fn closing(opening: &str) -> String {
    let dollars = || opening[1..].find('$').map(|length| opening[..length + 2].to_owned());
    match opening.as_bytes().first() {
        Some(b'$') => dollars().unwrap_or_else(|| "$".into()),
        Some(b'/') => "*/".into(),
        _ => opening.chars().find(|c| matches!(c, '\'' | '"' | '`')).unwrap_or('\'').into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(text: &str) -> Vec<(u64, String)> {
        let mut feed = Feed::default();
        let all = text.split_inclusive('\n').flat_map(|line| feed.push(line).unwrap());
        all.map(|statement| (statement.line, statement.text)).collect()
    }

    fn refused(text: &str) -> Option<(u64, &'static str)> {
        let mut feed = Feed::default();
        text.split_inclusive('\n').find_map(|line| feed.push(line).err()).map(|error| (error.line, error.problem.code))
    }

    #[test]
    fn the_same_statements_come_as_from_the_whole_text() {
        for text in [
            "-- a; b\n\nSELECT 1;\nSELECT 2; SELECT 3;\n",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $_$\n\\q;\nSELECT ';';\n$_$;\nSELECT 2;\n",
            "INSERT INTO t VALUES ('a;\n''b;\n\\! ls;\n');\nSELECT E'\\';\n';\n",
            "/* a;\n/* b; */\n;*/ SELECT 1;\nSELECT \"x;\ny\";\n",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql\nBEGIN ATOMIC\n SELECT 1;\n SELECT 2;\nEND;\nSELECT 3;\n",
            "CREATE RULE r AS ON INSERT TO t DO (SELECT 1;\n SELECT 2);\nSELECT 3;\n",
            "SELECT $a$;\n$$;\n$a$, 'x' ; SELECT 'open\n;' ;\n",
        ] {
            let whole: Vec<&str> = split(text).statements.iter().map(|one| &text[one.range.clone()]).collect();
            let pieces = fed(text);
            assert_eq!(pieces.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), whole, "{text}");
            for (line, piece) in pieces {
                let start = text.find(&piece).unwrap();
                assert_eq!(line, 1 + lines(&text[..start]), "{piece}");
            }
        }
    }

    #[test]
    fn commands_of_psql_are_found_outside_of_strings_only() {
        assert_eq!(refused("SELECT 1;\n\n\\! rm -rf /\n"), Some((3, "psql-meta-command")));
        assert_eq!(refused("SELECT 1\n \\gexec\n"), Some((2, "psql-meta-command")));
        assert_eq!(refused("SELECT '\n\\! ls\n';\nCOPY t FROM PROGRAM 'ls';\n"), Some((4, "copy-program")));
        assert_eq!(refused("DO $x$\n\\! ls\n$x$;\n/*\n\\q\n*/\nSELECT 1;\n"), None);
    }

    #[test]
    fn rows_are_announced() {
        let mut feed = Feed::default();
        let copy = feed.push("COPY public.t (a) FROM stdin;\n").unwrap();
        assert_eq!(copy, [Fed { text: "COPY public.t (a) FROM stdin".into(), line: 1, copies: true }]);
        feed.skip_lines(3);
        assert_eq!((feed.push("SELECT 1;\n").unwrap()[0].line, feed.is_open()), (5, false));
        feed.push("SELECT (\n").unwrap();
        assert!(feed.is_open());
    }
}
