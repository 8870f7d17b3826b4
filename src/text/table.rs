//! Small tables, as psql draws them: aligned, numbers to the right, long cells cut.

use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use super::{Ink, Line, Style, cut, one_line};

/// No cell is wider, whatever room there is.
const WIDEST_CELL: usize = 48;
/// Below this a column is not worth having.
const NARROWEST_CELL: usize = 5;

/// A cell: what it says, how it is inked, and whether it is a number.
#[derive(Debug, Clone)]
pub struct Cell {
    ink: Ink,
    text: String,
    right: bool,
}

impl Cell {
    /// Text, to the left.
    pub fn text(ink: Ink, text: impl AsRef<str>) -> Self {
        Self { ink, text: one_line(text.as_ref()).into_owned(), right: false }
    }

    /// A number or a duration, to the right.
    pub fn number(text: impl AsRef<str>) -> Self {
        Self { right: true, ..Self::text(Ink::Plain, text) }
    }

    /// A value of a database: NULL stands out from the text `NULL` by its ink.
    pub fn value(value: &Value) -> Self {
        match value {
            Value::Null => Self::text(Ink::Dim, "NULL"),
            Value::Number(number) => Self::number(number.to_string()),
            other => {
                let text = plain_value(other);
                let right = !text.is_empty() && text.parse::<f64>().is_ok_and(f64::is_finite);
                Self { right, ..Self::text(Ink::Plain, text) }
            }
        }
    }
}

/// A value as people read it: text without quotes, everything else as JSON.
pub fn plain_value(value: &Value) -> String {
    match value {
        Value::Null => "NULL".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A table with a header and a rule below it.
pub fn table(columns: &[String], rows: &[Vec<Cell>], style: Style, indent: usize) -> Vec<Line> {
    let room = style.width.map(|width| width.saturating_sub(indent));
    let widths = widths(columns, rows, room);
    let header = columns.iter().map(|name| Cell::text(Ink::Strong, name)).collect::<Vec<_>>();
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut lines = vec![row(&header, &widths, " | "), Line::new().then(Ink::Dim, rule.join("-+-"))];
    lines.extend(rows.iter().map(|cells| row(cells, &widths, " | ")));
    match room {
        Some(room) => lines.into_iter().map(|line| line.cut(room)).collect(),
        None => lines,
    }
}

/// Columns without rules, for lists; the last one may be as wide as it likes.
pub fn columns(names: &[&str], rows: &[Vec<Cell>]) -> Vec<Line> {
    let header: Vec<Cell> = names.iter().map(|name| Cell::text(Ink::Dim, name)).collect();
    let widths: Vec<usize> = (0..names.len())
        .map(|column| rows.iter().chain([&header]).filter_map(|row| row.get(column)).map(|cell| cell.text.width()).max().unwrap_or(0))
        .collect();
    std::iter::once(&header).chain(rows).map(|cells| row(cells, &widths, "  ")).collect()
}

/// Sample rows of a result, and how many there are in all.
pub fn sample(columns: &[String], rows: &[Vec<Value>], total: u64, style: Style, indent: usize) -> Vec<Line> {
    let cells: Vec<Vec<Cell>> = rows.iter().map(|row| row.iter().map(Cell::value).collect()).collect();
    let mut lines = table(columns, &cells, style, indent);
    if total > rows.len() as u64 {
        lines.push(Line::new().then(Ink::Dim, format!("({} of {total} rows)", rows.len())));
    }
    lines
}

fn row(cells: &[Cell], widths: &[usize], separator: &str) -> Line {
    let mut line = Line::new();
    for (position, (cell, width)) in cells.iter().zip(widths).enumerate() {
        if position > 0 {
            line.push(Ink::Dim, separator);
        }
        let text = cut(&cell.text, *width);
        let padding = " ".repeat(width - text.width());
        let (before, after) = if cell.right { (padding.as_str(), "") } else { ("", padding.as_str()) };
        line.push(Ink::Plain, before);
        line.push(cell.ink, &text);
        line.push(Ink::Plain, after);
    }
    line
}

/// As wide as the content, then narrowed from the widest on until the room is enough.
fn widths(columns: &[String], rows: &[Vec<Cell>], room: Option<usize>) -> Vec<usize> {
    let mut widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(column, name)| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.width());
            cells.chain([one_line(name).width()]).max().unwrap_or(0).clamp(1, WIDEST_CELL)
        })
        .collect();
    let separators = 3 * columns.len().saturating_sub(1);
    while let Some(room) = room
        && widths.iter().sum::<usize>() + separators > room
        && let Some(widest) = widths.iter_mut().max()
        && *widest > NARROWEST_CELL
    {
        *widest -= 1;
    }
    widths
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::text::draw;

    fn shown(columns: &[&str], rows: &[Vec<Value>], width: Option<usize>) -> String {
        let columns: Vec<String> = columns.iter().map(|name| (*name).to_owned()).collect();
        let style = Style { color: false, width };
        draw(&sample(&columns, rows, 17, style, 0), style)
    }

    #[test]
    fn rows_are_aligned_and_numbers_stand_to_the_right() {
        let rows = [
            vec![json!("racks"), json!(2), json!("12.50"), json!(null)],
            vec![json!("検査"), json!(1000), json!("3.00"), json!({"a": [1, true]})],
            vec![json!("two\nlines\x1b[31m"), json!(-1), json!("0"), json!("")],
        ];
        insta::assert_snapshot!(shown(&["what", "n", "amount", "note"], &rows, None), @r#"
        what           | n    | amount | note
        ---------------+------+--------+---------------
        racks          |    2 |  12.50 | NULL
        検査           | 1000 |   3.00 | {"a":[1,true]}
        two↵lines␛[31m |   -1 |      0 |
        (3 of 17 rows)
        "#);
    }

    #[test]
    fn a_narrow_terminal_cuts_the_widest_cells_first() {
        let rows = [vec![json!(7), json!("a very long text that goes on and on"), json!("short")]];
        insta::assert_snapshot!(shown(&["id", "comment", "state"], &rows, Some(30)), @"
        id | comment           | state
        ---+-------------------+------
         7 | a very long text… | short
        (1 of 17 rows)
        ");
    }

    #[test]
    fn lists_have_columns_without_rules() {
        let rows = [vec![Cell::text(Ink::Plain, "a"), Cell::number("1.00s")], vec![Cell::text(Ink::Plain, "bcd"), Cell::number("10.0s")]];
        insta::assert_snapshot!(draw(&columns(&["RUN", "TIME"], &rows), Style::PLAIN), @r"
        RUN  TIME
        a    1.00s
        bcd  10.0s
        ");
    }
}
