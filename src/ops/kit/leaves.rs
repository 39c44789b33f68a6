//! What of a page stands on which sheet of paper.
//!
//! A browser breaks a long page wherever it is full, and says nowhere that there is another sheet. So the height of
//! everything is reckoned from the page's style, lines a little too full, and what would not fit one sheet is laid out on
//! several, each with its number and with the foot. Pure.

use super::sheet::{Sheet, Step};

/// All in hundredths of a millimetre: A4 within its margins, less what this may be wrong by.
const SHEET: usize = 27_700 - 400;
/// Lines of the text, of the table and commands, and of the foot.
const LINE: usize = 404;
const MONO: usize = 359;
const SMALL: usize = 377;
/// A line of the title, what is around them, and what a table has around its rows.
const TITLE: usize = 673;
const TITLED: usize = 100;
const TABLE: usize = 430;
/// What a row has around its lines, the first of which is as high as its name.
const ROW: usize = 170 + LINE - MONO;
/// What a step has around its lines.
const STEP: usize = 140 + 210;
const SQUARE: usize = 3400;
/// How many letters stand on a line: of the text, of a cell of the table, of a command.
const LETTERS: usize = 105;
const HEADING: usize = 58;
const CELL: usize = 84;
const COMMAND: usize = 98;

/// One sheet of paper.
#[derive(Debug, Default)]
pub(super) struct Leaf<'a> {
    pub rows: Vec<Row<'a>>,
    /// With their numbers, from 1.
    pub steps: Vec<(usize, &'a Step)>,
    pub secret: bool,
}

/// A row of the table, or what of it stands on this sheet.
#[derive(Debug)]
pub(super) struct Row<'a> {
    pub name: &'static str,
    /// One of the things that are needed.
    pub bold: bool,
    /// It began on the sheet before.
    pub goes_on: bool,
    pub lines: Vec<&'a str>,
}

/// The sheets of a page: one, wherever it fits.
pub(super) fn leaves(sheet: &Sheet) -> Vec<Leaf<'_>> {
    let foot = 330 + sheet.foot.iter().map(|line| lines(line, LETTERS) * SMALL).sum::<usize>();
    let lead = lines(&sheet.lead, LETTERS) * LINE + 100;
    let head = TITLED + lines(&format!("{}, sheet 10 of 10", sheet.title), HEADING) * TITLE;
    let mut pile = Pile { leaves: vec![Leaf::default()], used: head + lead + TABLE + foot, head, foot };
    for (n, (name, texts)) in sheet.facts.iter().enumerate() {
        let mut begun = false;
        for text in texts {
            let own = lines(text, CELL) * MONO;
            let is_new = pile.makes_room(if begun { own + 30 } else { own + ROW }) || !begun;
            let rows = &mut pile.last().rows;
            if is_new {
                rows.push(Row { name, bold: n < 3, goes_on: begun, lines: Vec::new() });
            }
            if let Some(row) = rows.last_mut() {
                row.lines.push(text);
            }
            begun = true;
        }
    }
    for (n, step) in sheet.steps.iter().enumerate() {
        let words = step.title.len() + 2 + step.text.len();
        let commands: usize = step.commands.iter().map(|c| lines(c, COMMAND) * MONO).sum();
        pile.makes_room(STEP + words.div_ceil(LETTERS) * LINE + commands);
        pile.last().steps.push((n + 1, step));
    }
    if let Some((_, secret)) = &sheet.secret {
        // The square stands beside it.
        let text: usize = MONO + secret.lines().map(|line| lines(line, CELL - 20) * MONO).sum::<usize>();
        pile.makes_room(720 + text.max(SQUARE));
        pile.last().secret = true;
    }
    pile.leaves
}

struct Pile<'a> {
    /// Never empty.
    leaves: Vec<Leaf<'a>>,
    used: usize,
    head: usize,
    foot: usize,
}

impl<'a> Pile<'a> {
    /// Takes room, on another sheet where this one is full; whether it is another one.
    fn makes_room(&mut self, height: usize) -> bool {
        let is_full = self.used + height > SHEET;
        if is_full {
            self.leaves.push(Leaf::default());
            self.used = self.head + TABLE + ROW + self.foot;
        }
        self.used += height;
        is_full
    }

    fn last(&mut self) -> &mut Leaf<'a> {
        let last = self.leaves.len() - 1;
        &mut self.leaves[last]
    }
}

/// How many lines of so many letters a text takes.
fn lines(text: &str, letters: usize) -> usize {
    text.chars().count().div_ceil(letters).max(1)
}
