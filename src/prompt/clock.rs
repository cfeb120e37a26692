//! The date that a template may ask for: read once, formatted as Python's `strftime` does in the C
//! locale.

use jiff::civil::DateTime;

/// The wall clock that `strftime_now` shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// The machine's local time, read once when the prompt is opened.
    #[default]
    System,
    /// A fixed local time.
    Fixed {
        /// The year, e.g. 2024.
        year: i16,
        /// The month, 1 to 12.
        month: i8,
        /// The day of the month, from 1.
        day: i8,
        /// The hour, 0 to 23.
        hour: i8,
        /// The minute, 0 to 59.
        minute: i8,
    },
}

impl Clock {
    /// The time it shows; `None` for a fixed time that the calendar does not have.
    pub(super) fn read(self) -> Option<DateTime> {
        match self {
            Self::System => Some(jiff::Zoned::now().datetime()),
            Self::Fixed { year, month, day, hour, minute } => {
                DateTime::new(year, month, day, hour, minute, 0, 0).ok()
            }
        }
    }
}

/// `now.strftime(format)` for the codes that mean the same everywhere; an error names the code that
/// is not one of them.
pub(super) fn strftime(now: DateTime, format: &str) -> Result<String, String> {
    let weekday = jiff::fmt::strtime::format("%A", now).map_err(|error| error.to_string())?;
    let month = jiff::fmt::strtime::format("%B", now).map_err(|error| error.to_string())?;
    let hour12 = (now.hour() + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let code = chars.next();
        out.push_str(&match code {
            Some('a') => weekday[..3].to_owned(),
            Some('A') => weekday.clone(),
            Some('b') => month[..3].to_owned(),
            Some('B') => month.clone(),
            Some('d') => format!("{:02}", now.day()),
            Some('m') => format!("{:02}", now.month()),
            Some('y') => format!("{:02}", now.year().rem_euclid(100)),
            Some('Y') => now.year().to_string(),
            Some('H') => format!("{:02}", now.hour()),
            Some('I') => format!("{hour12:02}"),
            Some('M') => format!("{:02}", now.minute()),
            Some('S') => format!("{:02}", now.second()),
            Some('p') => if now.hour() < 12 { "AM" } else { "PM" }.to_owned(),
            Some('j') => format!("{:03}", now.date().day_of_year()),
            Some('F') => now.date().to_string(),
            Some('T') => format!("{:02}:{:02}:{:02}", now.hour(), now.minute(), now.second()),
            Some('%') => "%".to_owned(),
            Some(code) => {
                return Err(format!("strftime_now: the code `%{code}` in {format:?} is not implemented"));
            }
            None => return Err(format!("strftime_now: {format:?} ends in a lone `%`")),
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_codes_print_as_in_python() {
        // Expected strings: datetime(2024, 7, 6, 0, 5, 0).strftime(...) of CPython 3.11.
        let now = Clock::Fixed { year: 2024, month: 7, day: 6, hour: 0, minute: 5 }.read().unwrap();
        let cases = [
            ("%d %b %Y", "06 Jul 2024"),
            ("%A, %B %d, %Y", "Saturday, July 06, 2024"),
            ("%a %m/%d/%y %H:%M:%S", "Sat 07/06/24 00:05:00"),
            ("%I:%M %p, day %j, 100%%", "12:05 AM, day 188, 100%"),
            ("%F %T, é", "2024-07-06 00:05:00, é"),
        ];
        for (format, expected) in cases {
            assert_eq!(strftime(now, format).unwrap(), expected);
        }
    }

    #[test]
    fn an_unknown_code_is_named() {
        let now = Clock::System.read().unwrap();
        assert_eq!(
            strftime(now, "%Y %c").unwrap_err(),
            "strftime_now: the code `%c` in \"%Y %c\" is not implemented"
        );
        assert_eq!(strftime(now, "%").unwrap_err(), "strftime_now: \"%\" ends in a lone `%`");
    }

    #[test]
    fn a_day_that_does_not_exist_is_not_shown() {
        assert_eq!(Clock::Fixed { year: 2025, month: 2, day: 30, hour: 0, minute: 0 }.read(), None);
    }
}
