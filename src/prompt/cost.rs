//! What minijinja does not charge fuel for: values that are nested, repeated or read again and again.
//!
//! Its fuel pays for instructions, for what is written and for the items of lists that are gone through, but a
//! comparison, a key or the drop of a value goes as deep as lists lie in each other, free of charge, and a sum of two lists
//! is one step however long they are. So [`scan`](super::scan) passes what is compared, added, kept in a variable or
//! used as a key through filters ([`add_filters`]) that give a value back as it is, and charge for it or refuse it; tests and
//! filters that compare are charged likewise. `SECURITY.md` says what that comes to.

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value, filters, functions, tests};

use super::markup;
use super::python::{NESTING_MAX, iterable, unsupported};

/// The filter for what is compared.
pub(super) const COMPARED: &str = "_compared";

/// The filter for what `+` takes.
pub(super) const ADDED: &str = "_added";

/// The filter for what `set` keeps.
pub(super) const KEPT: &str = "_kept";

/// The filter for what `set` keeps in a namespace.
pub(super) const HELD: &str = "_held";

/// The filter for what a subscript or a mapping's key is.
pub(super) const KEY: &str = "_key";

/// The filter for what a loop goes through.
pub(super) const ITERATED: &str = "_iterated";

/// The filter for what `~` joins, which prints it as Python does.
pub(super) const JOINED: &str = "_joined";

/// All of them, which no template names.
pub(super) const FILTERS: [&str; 7] = [COMPARED, ADDED, KEPT, HELD, KEY, ITERATED, JOINED];

/// What one fuel pays for, which minijinja takes for an instruction or for 64 bytes: some 100 ns.
mod rate {
    /// Bytes of a text that are compared, hashed or searched once.
    pub(super) const TEXT_BYTES: u64 = 128;
    /// Bytes of a text that lies in a list: they may be printed, too.
    pub(super) const HELD_BYTES: u64 = 64;
    /// Bytes of a text that is made of lists and numbers, or taken apart by a set of characters.
    pub(super) const MADE_BYTES: u64 = 8;
    /// Values in each other that are compared.
    pub(super) const COMPARED: u64 = 1;
    /// The same that are only looked at.
    pub(super) const SEEN: u64 = 4;
    /// Items of lists that are added: memory for them, at the worst.
    pub(super) const ADDED: u64 = 2;
}

/// Bytes of a name by which `attribute` finds something, at most: it is looked up in each item.
const NAME_BYTES_MAX: usize = 1000;

/// Values that are gone through between two charges.
const STEP: u64 = 4096;

/// Adds the filters that `scan` uses, and charges those and the tests of minijinja's that compare.
pub(super) fn add_filters(env: &mut Environment<'static>) {
    env.add_filter(COMPARED, |state: &State, value: Value| {
        let value = markup::plain(value);
        charge(state, &value, rate::COMPARED)?;
        Ok::<_, Error>(value)
    });
    env.add_filter(ITERATED, |value: Value| iterable(&value).map(|()| value));
    env.add_filter(KEPT, |state: &State, value: Value| {
        charge(state, &value, rate::SEEN)?;
        Ok::<_, Error>(value)
    });
    env.add_filter(HELD, |state: &State, value: Value| {
        let mut seen = Seen::new(state, rate::SEEN);
        seen.look(&value, 0)?;
        seen.settle()?;
        // Namespaces that hold each other would never be freed.
        match seen.has_namespace {
            true => Err(unsupported("a namespace in a namespace is not implemented")),
            false => Ok(value),
        }
    });
    env.add_filter(ADDED, |state: &State, value: Value| {
        markup::refuse(&value)?;
        if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
            state.consume_fuel(value.len().unwrap_or(0) as u64 / rate::ADDED)?;
        }
        Ok::<_, Error>(value)
    });
    env.add_filter(KEY, |state: &State, value: Value| {
        charge_key(state, &value)?;
        Ok::<_, Error>(value)
    });
    add_comparing_tests(env);
    add_comparing_filters(env);
    let copying = [
        ("namespace", Value::from_function(functions::namespace)),
        ("dict", Value::from_function(functions::dict)),
    ];
    for (name, function) in copying {
        env.add_function(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            args.iter().try_for_each(iterable)?;
            let items = args.iter().filter_map(Value::len).sum::<usize>();
            state.consume_fuel(items as u64 / rate::ADDED)?;
            function.call(state, &args)
        });
    }
}

fn add_comparing_tests(env: &mut Environment<'static>) {
    type Test = fn(&Value, &Value) -> bool;
    const TESTS: [(&[&str], Test); 6] = [
        (&["eq", "equalto", "=="], tests::is_eq),
        (&["ne", "!="], tests::is_ne),
        (&["lt", "lessthan", "<"], tests::is_lt),
        (&["le", "<="], tests::is_le),
        (&["gt", "greaterthan", ">"], tests::is_gt),
        (&["ge", ">="], tests::is_ge),
    ];
    for (names, test) in TESTS {
        for name in names {
            env.add_test(*name, move |state: &State, value: &Value, other: &Value| {
                charge(state, value, rate::COMPARED)?;
                charge(state, other, rate::COMPARED)?;
                Ok::<_, Error>(test(value, other))
            });
        }
    }
    env.add_test("in", |state: &State, value: &Value, other: &Value| {
        charge(state, value, rate::COMPARED)?;
        charge(state, other, rate::COMPARED)?;
        tests::is_in(state, value, other)
    });
    env.add_test("sameas", |state: &State, value: &Value, other: &Value| {
        markup::refuse(value)?;
        markup::refuse(other)?;
        // Texts are compared by what they say.
        charge_text(state, value.as_str().map_or(0, str::len))?;
        Ok::<_, Error>(tests::is_sameas(value, other))
    });
}

fn add_comparing_filters(env: &mut Environment<'static>) {
    let sorting = [
        ("sort", Value::from_function(filters::sort)),
        ("unique", Value::from_function(filters::unique)),
        ("groupby", Value::from_function(filters::groupby)),
        ("dictsort", Value::from_function(filters::dictsort)),
        ("min", Value::from_function(filters::min)),
        ("max", Value::from_function(filters::max)),
    ];
    for (name, filter) in sorting {
        env.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            short_names(&args)?;
            if let Some(value) = args.first() {
                iterable(value)?;
                let fuel = charge(state, value, rate::COMPARED)?;
                let rounds = u64::from(value.len().unwrap_or(usize::MAX).max(1).ilog2());
                state.consume_fuel(fuel.saturating_mul(rounds))?;
            }
            filter.call(state, &args)
        });
    }
    // `map`, `select` and their like take none for an empty list in Jinja2, too.
    let walking = [
        ("list", Value::from_function(filters::list)),
        ("first", Value::from_function(filters::first)),
        ("last", Value::from_function(filters::last)),
        ("reverse", Value::from_function(filters::reverse)),
        ("batch", Value::from_function(filters::batch)),
        ("slice", Value::from_function(filters::slice)),
        ("items", Value::from_function(filters::items)),
    ];
    for (name, filter) in walking {
        env.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            args.first().map_or(Ok(()), iterable)?;
            filter.call(state, &args)
        });
    }
    for (name, filter) in
        [("int", Value::from_function(filters::int)), ("float", Value::from_function(filters::float))]
    {
        env.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            if args.first().is_some_and(Value::is_undefined) {
                return Err(minijinja::ErrorKind::UndefinedError.into());
            }
            filter.call(state, &args)
        });
    }
    let naming = [
        ("map", Value::from_function(filters::map)),
        ("selectattr", Value::from_function(filters::selectattr)),
        ("rejectattr", Value::from_function(filters::rejectattr)),
    ];
    for (name, filter) in naming {
        env.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            short_names(&args)?;
            filter.call(state, &args)
        });
    }
    let sum = Value::from_function(filters::sum);
    env.add_filter("sum", move |state: &mut State, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        short_names(&args)?;
        args.first().map_or(Ok(()), iterable)?;
        // Texts and lists would be added one by one, each sum longer than the last.
        let start = args.get(2).filter(|value| !value.is_kwargs()).cloned().or(keyword(&args, "start"));
        if start.is_some_and(|start| start.kind() != ValueKind::Number) {
            return Err(unsupported("a sum of other than numbers is not implemented"));
        }
        sum.call(state, &args)
    });
}

/// Refuses names of attributes that take long to look up: the first argument, or the keyword `attribute`.
fn short_names(args: &[Value]) -> Result<(), Error> {
    let is_long = |name: &Value| name.as_str().is_some_and(|name| name.len() > NAME_BYTES_MAX);
    match args.get(1).is_some_and(is_long) || keyword(args, "attribute").as_ref().is_some_and(is_long) {
        true => Err(unsupported(format!("an attribute's name of more than {NAME_BYTES_MAX} bytes"))),
        false => Ok(()),
    }
}

/// What a filter is given by this name.
fn keyword(args: &[Value], name: &str) -> Option<Value> {
    let kwargs = args.last().filter(|last| last.is_kwargs())?;
    kwargs.get_attr(name).ok().filter(|value| !value.is_undefined())
}

/// Charges for a text that is read once.
pub(super) fn charge_text(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / rate::TEXT_BYTES)
}

/// Charges for a text that was made of other values, or is compared with a set of characters.
pub(super) fn charge_made(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / rate::MADE_BYTES)
}

/// Charges for a text that a value holds, as minijinja does for texts.
pub(super) fn charge_held(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / rate::HELD_BYTES)
}

/// Charges for items of a list that are gone through.
pub(super) fn charge_items(state: &State, items: usize) -> Result<(), Error> {
    state.consume_fuel(items as u64 / rate::SEEN)
}

/// Charges for a value that something is looked up by, and refuses what Python's mappings have no keys of.
pub(super) fn charge_key(state: &State, value: &Value) -> Result<(), Error> {
    markup::refuse(value)?;
    if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) && !value.is_tuple() {
        return Err(unsupported(format!("a value of kind {} as a key", value.kind())));
    }
    charge_compared(state, value)
}

/// Charges for a value that is compared with another one.
pub(super) fn charge_compared(state: &State, value: &Value) -> Result<(), Error> {
    charge(state, value, rate::COMPARED).map(drop)
}

/// Charges for a value and all that lies in it, `values` for one fuel, and returns the fuel. Refuses what is nested deeper
/// than it could be printed.
fn charge(state: &State, value: &Value, values: u64) -> Result<u64, Error> {
    if values == rate::COMPARED {
        markup::refuse(value)?;
    }
    if let Some(text) = value.as_str() {
        charge_text(state, text.len())?;
        return Ok(text.len() as u64 / rate::TEXT_BYTES);
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        return Ok(0);
    }
    let mut seen = Seen::new(state, values);
    seen.look(value, 0)?;
    seen.settle()?;
    Ok(seen.fuel)
}

/// What was found in a value.
struct Seen<'a, 'template, 'env> {
    state: &'a State<'template, 'env>,
    values_per_fuel: u64,
    values: u64,
    bytes: u64,
    fuel: u64,
    has_namespace: bool,
}

impl<'a, 'template, 'env> Seen<'a, 'template, 'env> {
    fn new(state: &'a State<'template, 'env>, values_per_fuel: u64) -> Self {
        Self { state, values_per_fuel, values: 0, bytes: 0, fuel: 0, has_namespace: false }
    }

    fn look(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > NESTING_MAX {
            return Err(unsupported(format!(
                "a value with more than {NESTING_MAX} lists or mappings in each other"
            )));
        }
        if self.values_per_fuel == rate::COMPARED {
            markup::refuse(value)?;
        }
        self.values += 1;
        self.bytes += markup::text_of(value).map_or(0, |text| text.len() as u64);
        self.bytes += value.as_str().map_or(0, |text| text.len() as u64);
        if self.values >= STEP || self.bytes >= STEP * rate::HELD_BYTES {
            self.settle()?;
        }
        match value.kind() {
            ValueKind::Map => {
                self.has_namespace |=
                    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"));
                for key in value.try_iter()?.checked() {
                    let key = key?;
                    self.look(&key, depth + 1)?;
                    self.look(&value.get_item(&key)?, depth + 1)?;
                }
            }
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()?.checked() {
                    self.look(&item?, depth + 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Error> {
        let fuel = self.values / self.values_per_fuel + self.bytes / rate::HELD_BYTES;
        self.fuel += fuel;
        (self.values, self.bytes) = (0, 0);
        self.state.consume_fuel(fuel)
    }
}
