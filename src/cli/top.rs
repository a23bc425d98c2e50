//! `php-pool top`: all pools and their workers, live, in a terminal.
//!
//! A thread asks the masters; the screen never waits for one.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};
use std::{io, thread};

use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Row, Table, TableState};
use ratatui::{DefaultTerminal, Frame};

use super::ask::{Anybody, ask, plain, request_of, state_of};
use super::trace;
use crate::api::{Answer, PoolStatus, Question};
use crate::status::ProcessStatus;

/// How long one master may hold up the look at the others.
const PATIENCE: Duration = Duration::from_secs(2);

/// Frames of a backtrace.
const DEPTH: u32 = 64;

/// `php-pool top`
#[derive(Args, Clone, Debug)]
pub struct TopArgs {
    #[command(flatten)]
    whom: Anybody,
    /// Seconds between two looks
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    every: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    (0.1..=60.0)
        .contains(&number)
        .then_some(number)
        .ok_or_else(|| "from 0.1 to 60".to_owned())
}

/// What the thread has found.
struct Look {
    at: Instant,
    /// With each pool the socket of its master.
    pools: Vec<(PathBuf, PoolStatus)>,
    problems: Vec<String>,
}

/// What the screen wants of the thread.
enum Wish {
    Backtrace(PathBuf, i32),
}

enum News {
    Look(Look),
    Backtrace(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Duration,
    Requests,
    Cpu,
    Memory,
    Pool,
    Pid,
}

impl Sort {
    const ALL: [(Self, &str); 6] = [
        (Self::Duration, "duration"),
        (Self::Requests, "requests"),
        (Self::Cpu, "cpu"),
        (Self::Memory, "memory"),
        (Self::Pool, "pool"),
        (Self::Pid, "pid"),
    ];

    fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(sort, _)| *sort == self)
            .map_or("", |(_, name)| name)
    }

    fn next(self) -> Self {
        let at = Self::ALL.iter().position(|(sort, _)| *sort == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()].0
    }
}

struct Screen {
    look: Option<Look>,
    /// Requests a second of each pool, by its socket and name.
    rates: HashMap<(PathBuf, String), f64>,
    sort: Sort,
    reverse: bool,
    only_active: bool,
    filter: String,
    typing: bool,
    help: bool,
    backtrace: Option<String>,
    selected: TableState,
}

/// Shows it until `q`. Exit status: 0, or 1 when there is no terminal.
pub fn top(args: &TopArgs) -> i32 {
    let (wishes, wished) = mpsc::channel();
    let (teller, news) = mpsc::channel();
    let (whom, every) = (args.whom.clone(), Duration::from_secs_f64(args.every));
    thread::spawn(move || look_around(&whom, every, &wished, &teller));
    let mut terminal = match ratatui::try_init() {
        Ok(terminal) => terminal,
        Err(error) => {
            eprintln!("php-pool: top needs a terminal: {error}; php-pool status --watch does not");
            return 1;
        }
    };
    let result = run(&mut terminal, &news, &wishes);
    ratatui::restore();
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("php-pool: the terminal: {error}");
            1
        }
    }
}

fn look_around(whom: &Anybody, every: Duration, wishes: &Receiver<Wish>, teller: &Sender<News>) {
    let mut next = Instant::now();
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let news = match wishes.recv_timeout(left) {
            Ok(Wish::Backtrace(socket, pid)) => News::Backtrace(backtrace(&socket, pid)),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                next = Instant::now() + every;
                News::Look(look(whom))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        };
        if teller.send(news).is_err() {
            return;
        }
    }
}

fn look(whom: &Anybody) -> Look {
    let (mut pools, mut problems) = (Vec::new(), Vec::new());
    for (socket, answer) in whom.ask_all(PATIENCE) {
        match answer {
            Ok(found) => pools.extend(found.into_iter().map(|pool| (socket.clone(), pool))),
            Err(error) => problems.push(plain(&error.to_string())),
        }
    }
    // What is wrong stands on top, where the screen has room for it.
    pools.sort_by_cached_key(|(_, pool)| (pool.is_ready(), !pool.is_saturated(), pool.snapshot.pool.clone()));
    for (_, pool) in pools.iter().filter(|(_, pool)| !pool.is_ready()) {
        if let Some(failure) = &pool.failure {
            problems.push(plain(&format!("{}: {failure}", pool.snapshot.pool)));
        }
    }
    if pools.is_empty() && problems.is_empty() {
        problems.push("no pool runs: all are stopped, or asleep until their next request".to_owned());
    }
    Look {
        at: Instant::now(),
        pools,
        problems,
    }
}

fn backtrace(socket: &std::path::Path, pid: i32) -> String {
    match ask(socket, &Question::Trace { depth: DEPTH }, Some(PATIENCE)) {
        Ok(Answer::Traces { traces }) => match traces.iter().find(|traced| traced.pid == pid) {
            Some(traced) => trace::show(traced, DEPTH as usize),
            None => format!("{pid}: no request"),
        },
        Ok(other) => format!("an unexpected answer: {other:?}"),
        Err(error) => error.to_string(),
    }
}

fn run(terminal: &mut DefaultTerminal, news: &Receiver<News>, wishes: &Sender<Wish>) -> io::Result<()> {
    let mut screen = Screen {
        look: None,
        rates: HashMap::new(),
        sort: Sort::Duration,
        reverse: false,
        only_active: false,
        filter: String::new(),
        typing: false,
        help: false,
        backtrace: None,
        selected: TableState::new().with_selected(0),
    };
    loop {
        for told in news.try_iter() {
            match told {
                News::Look(look) => screen.take(look),
                News::Backtrace(text) => screen.backtrace = Some(text),
            }
        }
        terminal.draw(|frame| screen.draw(frame))?;
        if event::poll(Duration::from_millis(100))?
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
            && !screen.press(key, wishes)
        {
            return Ok(());
        }
    }
}

impl Screen {
    fn take(&mut self, look: Look) {
        if let Some(before) = &self.look {
            let seconds = look.at.duration_since(before.at).as_secs_f64().max(0.001);
            let key = |(socket, pool): &(PathBuf, PoolStatus)| (socket.clone(), pool.snapshot.pool.clone());
            let counts: HashMap<_, _> = before.pools.iter().map(|p| (key(p), p.1.snapshot.accepted)).collect();
            let rate = |p: &(PathBuf, PoolStatus)| {
                let before = counts.get(&key(p))?;
                Some((key(p), p.1.snapshot.accepted.saturating_sub(*before) as f64 / seconds))
            };
            self.rates = look.pools.iter().filter_map(rate).collect();
        }
        self.look = Some(look);
    }

    /// The workers as they are shown, each with its master's socket and pool.
    fn workers(&self) -> Vec<(&PathBuf, &str, &ProcessStatus)> {
        let pools = self.look.iter().flat_map(|look| &look.pools);
        let mut all: Vec<_> = pools
            .flat_map(|(socket, pool)| {
                let name = pool.snapshot.pool.as_str();
                pool.snapshot.processes.iter().map(move |worker| (socket, name, worker))
            })
            .filter(|(_, _, worker)| !self.only_active || worker.stage.is_active())
            .filter(|(_, pool, worker)| {
                let text = format!(
                    "{pool} {} {} {} {}",
                    worker.pid, worker.method, worker.uri, worker.script
                );
                self.filter.is_empty() || text.to_lowercase().contains(&self.filter.to_lowercase())
            })
            .collect();
        match self.sort {
            // Those that work, the longest on top; then those that do not, by their last request.
            Sort::Duration => all.sort_by_key(|(_, _, w)| Reverse((w.stage.is_active(), w.request_duration))),
            Sort::Requests => all.sort_by_key(|(_, _, w)| Reverse(w.requests)),
            Sort::Cpu => all.sort_by(|(_, _, a), (_, _, b)| b.last_request_cpu.total_cmp(&a.last_request_cpu)),
            Sort::Memory => all.sort_by_key(|(_, _, w)| Reverse(w.last_request_memory)),
            Sort::Pool => all.sort_by_key(|(_, pool, w)| (*pool, w.pid)),
            Sort::Pid => all.sort_by_key(|(_, _, w)| w.pid),
        }
        if self.reverse {
            all.reverse();
        }
        all
    }

    /// Takes a key; false ends it.
    fn press(&mut self, key: KeyEvent, wishes: &Sender<Wish>) -> bool {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return false;
        }
        if self.typing {
            match key.code {
                KeyCode::Enter => self.typing = false,
                KeyCode::Esc => (self.typing, self.filter) = (false, String::new()),
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(c) => self.filter.push(c),
                _ => {}
            }
            return true;
        }
        if self.help || self.backtrace.is_some() {
            (self.help, self.backtrace) = (false, None);
            return true;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('r') => self.reverse = !self.reverse,
            KeyCode::Char('a') => self.only_active = !self.only_active,
            KeyCode::Char('/') => (self.typing, self.filter) = (true, String::new()),
            KeyCode::Char('h' | '?') => self.help = true,
            KeyCode::Down | KeyCode::Char('j') => self.selected.select_next(),
            KeyCode::Up | KeyCode::Char('k') => self.selected.select_previous(),
            KeyCode::Home => self.selected.select_first(),
            KeyCode::End => self.selected.select_last(),
            KeyCode::Char('b') | KeyCode::Enter => {
                let wish = self.selected.selected().and_then(|at| {
                    let (socket, _, worker) = *self.workers().get(at)?;
                    Some(Wish::Backtrace(socket.clone(), worker.pid))
                });
                if let Some(wish) = wish {
                    let _ = wishes.send(wish);
                }
            }
            _ => {}
        }
        true
    }

    fn draw(&mut self, frame: &mut Frame) {
        let (pools, problems) = self
            .look
            .as_ref()
            .map_or((0, 0), |look| (look.pools.len() as u16, look.problems.len() as u16));
        let height = frame.area().height;
        let [head, wrong, above, below, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(problems.min(height / 4)),
            Constraint::Length((pools + 1).min((height / 2).max(3))),
            Constraint::Fill(1),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(self.summary(), head);
        if let Some(look) = &self.look {
            frame.render_widget(Paragraph::new(look.problems.join("\n")).red(), wrong);
        }
        self.draw_pools(frame, above);
        self.draw_workers(frame, below);
        let keys = match self.typing {
            true => format!("filter: {}_   Enter keeps it, Esc drops it", self.filter),
            false => "q quit  s sort  r reverse  a active only  / filter  b backtrace  h help".to_owned(),
        };
        frame.render_widget(Line::from(keys).dim(), foot);
        if self.help {
            popup(frame, "Keys", HELP);
        }
        if let Some(text) = &self.backtrace {
            let text: Vec<String> = text.lines().map(plain).collect();
            popup(frame, "Backtrace", &text.join("\n"));
        }
    }

    fn summary(&self) -> Line<'static> {
        let pools = self.look.iter().flat_map(|look| &look.pools);
        let (mut active, mut idle, mut queue, mut number) = (0, 0, 0, 0);
        for (_, PoolStatus { snapshot, .. }) in pools {
            number += 1;
            active += snapshot.active;
            idle += snapshot.idle;
            queue += snapshot.listen_queue;
        }
        let pools = if number == 1 { "pool" } else { "pools" };
        // An empty sum of floats would be -0.
        let rate = self.rates.values().fold(0.0, |sum, rate| sum + rate);
        Line::from(vec![
            "php-pool".bold(),
            format!("  {number} {pools}  {active} active  {idle} idle  {queue} waiting  {rate:.1} requests/s").into(),
        ])
    }

    fn draw_pools(&self, frame: &mut Frame, area: Rect) {
        let Some(look) = &self.look else { return };
        let columns = Columns::that_fit(POOLS, area);
        let number = |n: u64| Line::from(n.to_string());
        let rows = look.pools.iter().map(|(socket, pool)| {
            let s = &pool.snapshot;
            let rate = self.rates.get(&(socket.clone(), s.pool.clone()));
            let style = match (pool.is_ready(), pool.is_saturated()) {
                (false, _) => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
                (true, true) => Style::new().fg(Color::Yellow),
                _ => Style::new(),
            };
            let cells = [
                Line::from(plain(&s.pool)),
                Line::from(pool.state.name()),
                number(pool.generation),
                number(s.active.into()),
                number(s.idle.into()),
                number(pool.max_children.into()),
                number(s.listen_queue.into()),
                Line::from(rate.map_or("-".to_owned(), |rate| format!("{rate:.1}"))),
                number(s.accepted),
                number(s.max_children_reached.into()),
                number(s.slow_requests),
            ];
            columns.row(cells).style(style)
        });
        frame.render_widget(Table::new(rows, columns.widths()).header(columns.header()), area);
    }

    fn draw_workers(&mut self, frame: &mut Frame, area: Rect) {
        let workers = self.workers();
        let columns = Columns::that_fit(WORKERS, area);
        let rows: Vec<Row> = workers
            .iter()
            .map(|(_, pool, w)| {
                let style = match w.stage.is_active() {
                    true => Style::new().fg(Color::Green),
                    false => Style::new().add_modifier(Modifier::DIM),
                };
                let cells = [
                    w.pid.to_string(),
                    plain(pool),
                    state_of(w.stage).to_owned(),
                    format!("{:.3}", w.request_duration as f64 / 1e6),
                    w.requests.to_string(),
                    format!("{:.0}", w.last_request_cpu),
                    format!("{:.1}", w.last_request_memory as f64 / 1_048_576.0),
                    request_of(w),
                ];
                columns.row(cells.map(Line::from)).style(style)
            })
            .collect();
        let count = rows.len();
        let (widths, header) = (columns.widths(), columns.header());
        let order = if self.reverse { ", reversed" } else { "" };
        let filter = match self.filter.as_str() {
            "" => String::new(),
            filter => format!(", with {filter:?}"),
        };
        let active = if self.only_active { ", active only" } else { "" };
        let title = format!(" {count} workers by {}{order}{active}{filter} ", self.sort.name());
        let table = Table::new(rows, widths)
            .header(header)
            .row_highlight_style(Style::new().add_modifier(Modifier::BOLD))
            .highlight_symbol("> ")
            .block(Block::new().title(Span::from(title).dim()));
        // One is chosen as long as there is one: the table forgets it when it is empty.
        let chosen = self.selected.selected().unwrap_or(0);
        self.selected.select(Some(chosen.min(count.saturating_sub(1))));
        frame.render_stateful_widget(table, area, &mut self.selected);
    }
}

/// A column: its name, its width, whether its cells are numbers, and whether a terminal of 80 columns has room for it.
type Column = (&'static str, Constraint, bool, bool);

const POOLS: &[Column] = &[
    ("POOL", Constraint::Fill(1), false, true),
    ("STATE", Constraint::Length(9), false, true),
    ("GEN", Constraint::Length(4), true, false),
    ("ACTIVE", Constraint::Length(6), true, true),
    ("IDLE", Constraint::Length(5), true, true),
    ("LIMIT", Constraint::Length(5), true, true),
    ("WAITING", Constraint::Length(7), true, true),
    ("REQ/S", Constraint::Length(8), true, true),
    ("REQUESTS", Constraint::Length(10), true, false),
    ("LIMITED", Constraint::Length(7), true, true),
    ("SLOW", Constraint::Length(6), true, true),
];

const WORKERS: &[Column] = &[
    ("PID", Constraint::Length(8), true, true),
    ("POOL", Constraint::Max(16), false, true),
    ("STATE", Constraint::Length(8), false, true),
    ("SECONDS", Constraint::Length(9), true, true),
    ("REQUESTS", Constraint::Length(9), true, false),
    ("CPU%", Constraint::Length(5), true, false),
    ("MIB", Constraint::Length(7), true, false),
    ("REQUEST", Constraint::Fill(1), false, true),
];

/// Narrower terminals show some columns less.
const WIDE: u16 = 100;

struct Columns {
    all: &'static [Column],
    wide: bool,
}

impl Columns {
    fn that_fit(all: &'static [Column], area: Rect) -> Self {
        let wide = area.width >= WIDE;
        Self { all, wide }
    }

    fn shown(&self) -> impl Iterator<Item = (usize, &Column)> {
        let columns = self.all.iter().enumerate();
        columns.filter(move |(_, (.., always))| self.wide || *always)
    }

    fn widths(&self) -> Vec<Constraint> {
        self.shown().map(|(_, column)| column.1).collect()
    }

    fn header(&self) -> Row<'static> {
        let names: Vec<_> = self.all.iter().map(|column| Line::from(column.0)).collect();
        self.row(names).style(Style::new().add_modifier(Modifier::REVERSED))
    }

    fn row<'a>(&self, cells: impl IntoIterator<Item = Line<'a>>) -> Row<'a> {
        let mut cells: Vec<_> = cells.into_iter().collect();
        Row::new(
            self.shown()
                .map(|(at, column)| {
                    let cell = std::mem::take(&mut cells[at]);
                    if column.2 { cell.right_aligned() } else { cell }
                })
                .collect::<Vec<_>>(),
        )
    }
}

const HELP: &str = "q, Esc    quit
s         next order: duration, requests, cpu, memory, pool, pid
r         the other way round
a         workers with a request only
/         filter by pool, pid, method, URI or script
Up, Down  choose a worker
b, Enter  its backtrace
h         this

A pool is yellow when requests wait, red when it does not serve.
CPU and memory are those of the last request.";

/// A box over all else, that any key closes.
fn popup(frame: &mut Frame, title: &str, text: &str) {
    let area = frame.area();
    let lines = text.lines().count() as u16 + 2;
    let height = lines.min(area.height);
    let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0) as u16 + 4;
    let width = widest.clamp(40, area.width.max(40)).min(area.width);
    let place = Rect {
        x: (area.width - width) / 2,
        y: (area.height - height) / 2,
        width,
        height,
    };
    let block = Block::bordered().title(format!(" {title} (any key closes it) "));
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(text.to_owned()).block(block), place);
}
