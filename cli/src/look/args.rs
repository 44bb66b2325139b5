//! Arguments of the commands that look into images.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::ValueEnum;

use crate::args::{ImageArgs, LayerArgs};
use peelfs::host::size;

/// `--color`
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum ColorArg {
    /// On a terminal, unless `NO_COLOR` is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// `peelfs ls`
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct LsArgs {
    /// Which image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Which layer of it.
    #[command(flatten)]
    pub layer: LayerArgs,
    /// Paths in the image
    #[arg(value_name = "PATH", default_value = "/")]
    pub paths: Vec<PathBuf>,
    /// Show modes, owners (by the names that the image has for them), sizes and times (UTC)
    #[arg(short = 'l', long)]
    pub long: bool,
    /// As -l, with numbers of users and groups
    #[arg(short = 'n', long = "numeric-uid-gid")]
    pub numeric: bool,
    /// Show sizes as in 1.5K, 23M
    #[arg(short = 'h', long)]
    pub human_readable: bool,
    /// Go into subdirectories
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// List directories themselves, not what is in them
    #[arg(short = 'd', long)]
    pub directory: bool,
    /// Color names as `LS_COLORS` says
    #[arg(long, value_enum, default_value_t, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    pub color: ColorArg,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    pub help: Option<bool>,
}

/// `peelfs find`
#[derive(Debug, clap::Args)]
#[command(after_help = EXPRESSIONS)]
pub(crate) struct FindArgs {
    /// Which image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Which layer of it.
    #[command(flatten)]
    pub layer: LayerArgs,
    /// Paths in the image
    #[arg(value_name = "PATH", default_value = "/")]
    pub paths: Vec<PathBuf>,
    /// One JSON object a line for each match
    #[arg(long)]
    pub json: bool,
    /// Tests and actions as find(1) has them; `--` may be left out
    #[arg(value_name = "EXPRESSION", last = true, allow_hyphen_values = true)]
    pub expression: Vec<OsString>,
}

const EXPRESSIONS: &str = "\
Expressions, with one hyphen or two, are those of find(1):
  -name, -iname, -path, -ipath GLOB    the last name, or the whole path; * matches slashes
  -regex, -iregex REGEX                the whole path (syntax of Rust's regex)
  -lname, -ilname GLOB                 the target of a symlink
  -type LETTERS                        f, d, l, p, c, b; several as in f,l
  -size [+-]N[cwbkMG]                  rounded up to units; + is more, - is less
  -perm MODE | -MODE | /MODE           exactly, all of, any of; octal or as in u+s
  -newer PATH, -newermt TIME           modified later than that file of the image, or that time (UTC)
  -mtime, -mmin [+-]N                  modified N days or minutes ago
  -user, -group NAME; -uid, -gid [+-]N; -nouser, -nogroup
  -links [+-]N, -empty, -executable, -true, -false
  -samefile PATH, -inum [+-]N          hard links of that file of the image; the inode of a mount
  -maxdepth N, -mindepth N, -depth, -prune, -quit, -print, -print0, -ls
  -xdev, -mount, -noleaf               accepted: an image is one file system
  -printf FORMAT                       GNU's without %D, %F and %Z, which an image has not; times in UTC; unknown
                                       directives and escapes are refused
  ! or -not, -a, -o, ( )

Examples:
  peelfs find alpine / -name '*.so*' -type f
  peelfs find alpine / -perm -4000 -ls
  peelfs find alpine /usr -type f -printf '%s %P\\n'
  peelfs find alpine /etc -type f -print0 | xargs -0 peelfs cat alpine";

/// `peelfs du`
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct DuArgs {
    /// Which image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Which layer of it.
    #[command(flatten)]
    pub layer: LayerArgs,
    /// Paths in the image
    #[arg(value_name = "PATH", default_value = "/")]
    pub paths: Vec<PathBuf>,
    /// Show directories down to N levels below each PATH
    #[arg(short = 'd', long, value_name = "N", conflicts_with = "summarize")]
    pub max_depth: Option<usize>,
    /// Show each PATH only
    #[arg(short = 's', long)]
    pub summarize: bool,
    /// Show files, too
    #[arg(short = 'a', long, conflicts_with = "summarize")]
    pub all: bool,
    /// Show a total
    #[arg(short = 'c', long)]
    pub total: bool,
    /// Show sizes as in 1.5K, 23M, instead of KiB
    #[arg(short = 'h', long)]
    pub human_readable: bool,
    /// Count the bytes of files instead of the blocks that they take
    #[arg(long)]
    pub apparent_size: bool,
    /// As --apparent-size, in bytes
    #[arg(short = 'b', long)]
    pub bytes: bool,
    /// Show instead how much of it comes from each layer
    #[arg(long, conflicts_with_all = ["max_depth", "summarize", "all", "total"])]
    pub layers: bool,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    pub help: Option<bool>,
}

/// `peelfs cat`
#[derive(Debug, clap::Args)]
pub(crate) struct CatArgs {
    /// Which image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Which layer of it.
    #[command(flatten)]
    pub layer: LayerArgs,
    /// Files in the image
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
}

/// `peelfs tree`
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct TreeArgs {
    /// Which image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Which layer of it.
    #[command(flatten)]
    pub layer: LayerArgs,
    /// Paths in the image
    #[arg(value_name = "PATH", default_value = "/")]
    pub paths: Vec<PathBuf>,
    /// Go down N levels at most
    #[arg(short = 'L', long, value_name = "N")]
    pub level: Option<usize>,
    /// Show names that begin with a dot, too
    #[arg(short = 'a', long)]
    pub all: bool,
    /// Show directories only
    #[arg(short = 'd', long)]
    pub dirs: bool,
    /// Show modes
    #[arg(short = 'p', long)]
    pub modes: bool,
    /// Show sizes in bytes
    #[arg(short = 's', long)]
    pub sizes: bool,
    /// Show sizes as in 1.5K, 23M
    #[arg(short = 'h', long)]
    pub human_readable: bool,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    pub help: Option<bool>,
}

/// `peelfs stat`
#[derive(Debug, clap::Args)]
pub(crate) struct StatArgs {
    /// Which image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Which layer of it.
    #[command(flatten)]
    pub layer: LayerArgs,
    /// Paths in the image
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
    /// Follow a symlink at the end of a path
    #[arg(short = 'L', long)]
    pub dereference: bool,
    /// Print a line of this format, as stat(1) has it: %n, %s, %a, %u, %U, %Y and others
    #[arg(short = 'c', long, value_name = "FORMAT", conflicts_with = "json")]
    pub format: Option<OsString>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

impl StatArgs {
    /// Whether names of users or groups are printed, for which files of the image are read.
    pub(crate) fn needs_owners(&self) -> bool {
        let names = |format: &OsString| format.as_encoded_bytes().windows(2).any(|pair| matches!(pair, b"%U" | b"%G"));
        self.format.as_ref().is_none_or(names)
    }
}

/// `peelfs sha256sum`
#[derive(Debug, clap::Args)]
pub(crate) struct SumArgs {
    /// Which image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Which layer of it.
    #[command(flatten)]
    pub layer: LayerArgs,
    /// Files in the image
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
    /// Go into directories
    #[arg(short, long)]
    pub recursive: bool,
    /// End lines with a zero byte, and escape nothing
    #[arg(short, long, conflicts_with = "json")]
    pub zero: bool,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// `peelfs grep`
#[derive(Debug, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "Exit codes: 0 found, 1 not found, 2 and more: as of other commands, with 2 for failures."
)]
pub(crate) struct GrepArgs {
    /// What to search for: a regular expression (syntax of Rust's regex)
    #[arg(value_name = "PATTERN")]
    pub pattern: String,
    /// Which image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Which layer of it.
    #[command(flatten)]
    pub layer: LayerArgs,
    /// Files in the image; without any, all of it
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Go into directories
    #[arg(short = 'r', short_alias = 'R', long)]
    pub recursive: bool,
    /// Ignore case
    #[arg(short = 'i', long)]
    pub ignore_case: bool,
    /// Lines that do not match
    #[arg(short = 'v', long)]
    pub invert_match: bool,
    /// Whole words only
    #[arg(short = 'w', long)]
    pub word_regexp: bool,
    /// Whole lines only
    #[arg(short = 'x', long)]
    pub line_regexp: bool,
    /// PATTERN is text
    #[arg(short = 'F', long)]
    pub fixed_strings: bool,
    /// Names of files that match
    #[arg(short = 'l', long, conflicts_with = "count")]
    pub files_with_matches: bool,
    /// Number of lines that match in each file
    #[arg(short = 'c', long, conflicts_with = "json")]
    pub count: bool,
    /// Numbers of lines
    #[arg(short = 'n', long)]
    pub line_number: bool,
    /// Names of files before lines (default for several)
    #[arg(short = 'H', long, overrides_with = "no_filename")]
    pub with_filename: bool,
    /// No names of files before lines
    #[arg(short = 'h', long, overrides_with = "with_filename")]
    pub no_filename: bool,
    /// Search binary files as text
    #[arg(short = 'a', long)]
    pub text: bool,
    /// One JSON object a line for each match
    #[arg(long)]
    pub json: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    pub help: Option<bool>,
}

/// `peelfs diff`
#[derive(Debug, clap::Args)]
#[command(after_help = DIFFERENCES)]
pub(crate) struct DiffArgs {
    /// Which image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// The image to compare it with
    #[arg(value_name = "OTHER")]
    pub other: String,
    /// Compare what is at this path
    #[arg(value_name = "PATH", default_value = "/")]
    pub path: PathBuf,
    /// Show sizes, what differs, and a summary
    #[arg(long, conflicts_with = "json")]
    pub stat: bool,
    /// Show names with their status; that is the default
    #[arg(long, conflicts_with_all = ["json", "stat"])]
    pub name_status: bool,
    /// Ignore times of modification
    #[arg(long)]
    pub ignore_times: bool,
    /// Take files of equal size and time as equal, without reading them
    #[arg(long, conflicts_with = "ignore_times")]
    pub quick: bool,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

const DIFFERENCES: &str =
    "Status: A only in OTHER, D only in IMAGE, M content or metadata differ, T another type of file.
Exit codes: 0 no difference, 1 differences, 2 and more: as of other commands, with 2 for failures.";

/// `peelfs layers`
#[derive(Debug, clap::Args)]
pub(crate) struct LayersArgs {
    /// Which image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// List the N largest files that a higher layer replaces or removes, too
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "20")]
    pub waste: Option<usize>,
    /// Fail if less than this share of the bytes is needed, as in `95` or `95%`
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub min_efficiency: Option<f64>,
    /// Fail if more than this is wasted, as in `20M`
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub max_waste: Option<u64>,
    /// Show whole commands
    #[arg(long)]
    pub no_trunc: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// A share in percent.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    let known = number.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
    // A ratio, as other tools have it, would be a limit that every image keeps.
    let is_ratio = number == text && known.is_some_and(|percent: f64| percent > 0.0 && percent <= 1.0);
    match known.filter(|_| !is_ratio) {
        Some(percent) => Ok(percent),
        None if is_ratio => Err(format!("expected percent, as in `95`; write `{text}%` if it is meant so")),
        None => Err("expected a number from 0 to 100, as in `95`".to_owned()),
    }
}

/// `peelfs which`
#[derive(Debug, clap::Args)]
pub(crate) struct WhichArgs {
    /// Which image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Paths in the image; they may be gone from it
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}
