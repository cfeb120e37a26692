//! Requests as services receive them: lengths from a distribution, responses to shared prompts,
//! random arrival times.

use std::fmt;
use std::str::FromStr;

use crate::workload::Ids;
use kudos::internals::random::Random;

/// Seeds for the same request are further apart than there are requests.
const LENGTHS_SEED: u64 = 1 << 40;
const PROMPTS_SEED: u64 = 2 << 40;
const RESPONSES_SEED: u64 = 3 << 40;
const ARRIVALS_SEED: u64 = 4 << 40;

/// The distribution of requests' lengths, in tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Lengths {
    Fixed(usize),
    /// Each length with the same probability, both ends included.
    Uniform(usize, usize),
    /// The logarithm is normal; lengths above `most` become `most`.
    LogNormal {
        median: f64,
        sigma: f64,
        most: usize,
    },
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected tokens, FIRST..LAST, or lognormal:MEDIAN,SIGMA,MAX".to_owned();
        let tokens = |text: &str| text.parse().ok().filter(|&tokens: &usize| tokens > 0).ok_or_else(wrong);
        if let Some(numbers) = text.strip_prefix("lognormal:") {
            let [median, sigma, most] = numbers.split(',').collect::<Vec<_>>()[..] else {
                return Err(wrong());
            };
            let number =
                |text: &str| text.parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0).ok_or_else(wrong);
            return Ok(Self::LogNormal {
                median: number(median)?,
                sigma: number(sigma)?,
                most: tokens(most)?,
            });
        }
        match text.split_once("..") {
            None => Ok(Self::Fixed(tokens(text)?)),
            Some((first, last)) => {
                let (first, last) = (tokens(first)?, tokens(last)?);
                if first > last { Err(wrong()) } else { Ok(Self::Uniform(first, last)) }
            }
        }
    }
}

/// In the form that [`FromStr`] reads.
impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(tokens) => write!(f, "{tokens}"),
            Self::Uniform(first, last) => write!(f, "{first}..{last}"),
            Self::LogNormal { median, sigma, most } => write!(f, "lognormal:{median},{sigma},{most}"),
        }
    }
}

impl Lengths {
    /// The longest request.
    pub(super) fn longest(&self) -> usize {
        match *self {
            Self::Fixed(tokens) => tokens,
            Self::Uniform(_, last) => last,
            Self::LogNormal { most, .. } => most,
        }
    }

    fn draw(&self, random: &mut Random) -> usize {
        match *self {
            Self::Fixed(tokens) => tokens,
            Self::Uniform(first, last) => first + (random.next_bits() % (last - first + 1) as u64) as usize,
            Self::LogNormal { median, sigma, most } => {
                // Box and Muller's normal number.
                let radius = (-2.0 * uniform(random).ln()).sqrt();
                let normal = radius * (std::f64::consts::TAU * uniform(random)).cos();
                // A float beyond the range becomes its end.
                ((median * (sigma * normal).exp()).round() as usize).clamp(1, most)
            }
        }
    }
}

/// A random number above 0 and up to 1.
fn uniform(random: &mut Random) -> f64 {
    ((random.next_bits() >> 11) + 1) as f64 / (1_u64 << 53) as f64
}

/// An endless sequence of requests, equal in every run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Requests {
    pub(super) lengths: Lengths,
    /// Consecutive requests that are responses to one prompt.
    pub(super) responses: usize,
    /// The share of the shortest of these that is the prompt.
    pub(super) shared: f64,
    pub(super) ids: Ids,
}

impl Requests {
    fn tokens(&self, index: usize) -> usize {
        self.lengths.draw(&mut Random::new(LENGTHS_SEED + index as u64))
    }

    /// The token ids of a request.
    pub(super) fn request(&self, index: usize) -> Vec<u32> {
        let group = index / self.responses;
        let members = group * self.responses..(group + 1) * self.responses;
        let shortest = members.map(|member| self.tokens(member)).min().unwrap_or(1);
        // Each request keeps at least one token of its own.
        let prompt = ((self.shared * shortest as f64) as usize).min(shortest - 1);
        let mut ids = self.ids.run(PROMPTS_SEED + group as u64, prompt);
        ids.extend(self.ids.run(RESPONSES_SEED + index as u64, self.tokens(index) - prompt));
        ids
    }
}

/// Arrival times of the first `seconds` seconds: a Poisson process of `rate` requests a second.
pub(super) fn arrivals(rate: f64, seconds: f64) -> Vec<f64> {
    let mut random = Random::new(ARRIVALS_SEED);
    let mut at = 0.0;
    std::iter::from_fn(|| {
        at -= uniform(&mut random).ln() / rate;
        (at < seconds).then_some(at)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_parsed_printed_and_refused_with_their_forms() {
        for text in ["7", "3..9", "lognormal:200,0.8,1024"] {
            assert_eq!(text.parse::<Lengths>().unwrap().to_string(), text);
        }
        for text in ["0", "9..3", "0..3", "lognormal:200,0.8", "lognormal:0,1,9", "lognormal:nan,1,9", "x"] {
            assert!(text.parse::<Lengths>().unwrap_err().contains("FIRST..LAST"), "{text}");
        }
    }

    #[test]
    fn lengths_have_their_distribution() {
        let drawn = |text: &str| {
            let lengths: Lengths = text.parse().unwrap();
            let draw = |seed| lengths.draw(&mut Random::new(LENGTHS_SEED + seed));
            let mut drawn: Vec<usize> = (0..20_000).map(draw).collect();
            drawn.sort_unstable();
            drawn
        };
        let uniform = drawn("3..9");
        for length in 3..=9 {
            let share = uniform.iter().filter(|&&drawn| drawn == length).count() as f64 / 20_000.0;
            // 0.0025 is the deviation of such a share.
            assert!((share - 1.0 / 7.0).abs() < 0.015, "{length}: {share}");
        }
        let lognormal = drawn("lognormal:200,0.5,4000");
        // One standard deviation below, the median, one above: 200 / e^0.5, 200, 200 * e^0.5.
        for (part, expected) in [(0.1587, 121.3), (0.5, 200.0), (0.8413, 329.7)] {
            let found = lognormal[(part * 20_000.0) as usize] as f64;
            assert!((found / expected - 1.0).abs() < 0.05, "{part}: {found}, expected {expected}");
        }
        assert_eq!(drawn("lognormal:200,3,300").last(), Some(&300));
    }

    #[test]
    fn requests_of_a_group_share_only_their_prompt() {
        let ids = Ids { count: 1000, padding: 1000 };
        let requests = Requests { lengths: Lengths::Uniform(20, 40), responses: 3, shared: 0.5, ids };
        let group: Vec<Vec<u32>> = (3..6).map(|index| requests.request(index)).collect();
        let prompt = group.iter().map(Vec::len).min().unwrap() / 2;
        assert!(group.iter().all(|request| request[..prompt] == group[0][..prompt]));
        assert_ne!(group[0][prompt..prompt + 8], group[1][prompt..prompt + 8]);
        assert_ne!(group[0][..8], requests.request(6)[..8]);
        assert_eq!(requests.request(4), group[1]);
        let whole = Requests { lengths: Lengths::Fixed(1), shared: 1.0, ..requests };
        assert_eq!(whole.request(0).len(), 1);
    }

    #[test]
    fn arrivals_are_a_poisson_process() {
        let arrivals = arrivals(50.0, 400.0);
        assert!(arrivals.is_sorted() && arrivals.last().unwrap() < &400.0);
        // 20,000 expected, with a deviation of 141.
        assert!((arrivals.len() as f64 - 20_000.0).abs() < 700.0, "{}", arrivals.len());
        let gaps: Vec<f64> = arrivals.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let long = gaps.iter().filter(|&&gap| gap > 1.0 / 50.0).count() as f64 / gaps.len() as f64;
        assert!((long - (-1.0_f64).exp()).abs() < 0.02, "{long}");
    }
}
