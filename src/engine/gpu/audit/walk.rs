//! Walks a kernel's intermediate representation as one invocation would, with the values that are known (constants,
//! parameters, counters of loops) and counts what it does with those that are not.

use std::collections::{BTreeSet, HashMap};

use wgpu::naga::{
    AddressSpace, BinaryOperator, Block, Expression, Function, GlobalVariable, Handle, Literal, MathFunction, Module,
    ScalarKind, Statement, TypeInner, UnaryOperator,
    valid::{FunctionInfo, ModuleInfo},
};

use super::Cost;

/// Most statements that a walk executes: a kernel with longer known loops is counted in part.
const STEPS: u64 = 1 << 22;

/// What is known of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Value {
    Unknown,
    /// Not known, but the same as everything of this number: what is computed from it again does not count again.
    Same(u32),
    /// A word, a double word, or a truth value as 0 or 1.
    Known(u64),
    /// Pointer to a variable of a function on the stack, or to a part of it.
    Local {
        frame: usize,
        index: usize,
        whole: bool,
    },
    /// Pointer to a global variable or a member of it.
    Global {
        variable: Handle<GlobalVariable>,
        member: Option<u32>,
    },
}

/// Numbers of operations, apart from each other.
const BINARY: u32 = 0;
const UNARY: u32 = 1 << 8;
const MATH: u32 = 2 << 8;
const SELECT: u32 = 3 << 8;
const COMPOSE: u32 = 4 << 8;
const SPLAT: u32 = 5 << 8;
const CONVERT: u32 = 6 << 8;
const PARTS: u32 = 1 << 16;
const PARAMETER: u32 = 1 << 20;

/// An operation by number, with its operands.
type Computed = HashMap<(u32, Vec<Value>), Value>;

/// What a branch starts from again: counts, variables, what has been computed.
#[derive(Clone)]
struct State {
    cost: Cost,
    locals: Vec<Vec<Value>>,
    computed: Computed,
}

/// How a statement goes on.
#[derive(Clone, Copy, PartialEq)]
enum Flow {
    Next,
    Break,
    Continue,
    Return(Value),
}

struct Frame<'a> {
    function: &'a Function,
    info: &'a FunctionInfo,
    arguments: Vec<Value>,
    values: Vec<Value>,
    locals: Vec<Value>,
}

/// The count of one invocation of entry point `entry`, and remarks; `parameters` are the members of the launch's parameters
/// that are known.
pub(super) fn walk(
    module: &Module,
    info: &ModuleInfo,
    entry: usize,
    parameters: &[(&str, u32)],
) -> (Cost, BTreeSet<String>) {
    let mut walk = Walk {
        module,
        info,
        parameters,
        cost: Cost::default(),
        remarks: BTreeSet::new(),
        frames: Vec::new(),
        uncertain: false,
        steps: 0,
        computed: Computed::new(),
        numbers: 0,
    };
    let function = &module.entry_points[entry].function;
    let arguments = function.arguments.iter().map(|_| walk.fresh()).collect();
    walk.call(function, info.get_entry_point(entry), arguments);
    if walk.steps >= STEPS {
        walk.remarks.insert("too long to be counted to its end".into());
    }
    (walk.cost, walk.remarks)
}

struct Walk<'a> {
    module: &'a Module,
    info: &'a ModuleInfo,
    parameters: &'a [(&'a str, u32)],
    cost: Cost,
    remarks: BTreeSet<String>,
    frames: Vec<Frame<'a>>,
    /// Whether the innermost loop may have been left on a condition that is not known.
    uncertain: bool,
    steps: u64,
    computed: Computed,
    numbers: u32,
}

impl<'a> Walk<'a> {
    fn call(&mut self, function: &'a Function, info: &'a FunctionInfo, arguments: Vec<Value>) -> Value {
        let locals = vec![Value::Unknown; function.local_variables.len()];
        let values = vec![Value::Unknown; function.expressions.len()];
        self.frames.push(Frame { function, info, arguments, values, locals });
        for (handle, local) in function.local_variables.iter() {
            let value = match local.init {
                Some(init) => self.value(init),
                None => Value::Known(0),
            };
            if self.is_scalar(&self.module.types[local.ty].inner) {
                self.set_local(self.frames.len() - 1, handle.index(), value);
            }
        }
        let flow = self.block(&function.body);
        self.frames.pop();
        if let Flow::Return(value) = flow { value } else { Value::Unknown }
    }

    fn block(&mut self, block: &'a Block) -> Flow {
        for statement in block.iter() {
            self.steps += 1;
            if self.steps >= STEPS {
                return Flow::Return(Value::Unknown);
            }
            let flow = self.statement(statement);
            if flow != Flow::Next {
                return flow;
            }
        }
        Flow::Next
    }

    fn statement(&mut self, statement: &'a Statement) -> Flow {
        match statement {
            Statement::Emit(range) => {
                for handle in range.clone() {
                    let value = self.compute(handle);
                    self.set_value(handle, value);
                }
            }
            Statement::Block(block) => return self.block(block),
            Statement::If { condition, accept, reject } => {
                return match self.value(*condition) {
                    Value::Known(0) => self.block(reject),
                    Value::Known(_) => self.block(accept),
                    _ => self.either(accept, reject),
                };
            }
            Statement::Switch { cases, .. } => {
                // The dearest case.
                let (before, mut best) = (self.state(), None);
                for case in cases {
                    self.restore(before.clone());
                    self.block(&case.body);
                    if best.as_ref().is_none_or(|best: &State| best.cost.weight() < self.cost.weight()) {
                        best = Some(self.state());
                    }
                }
                if let Some(best) = best {
                    self.restore(best);
                }
            }
            Statement::Loop { body, continuing, break_if } => return self.repeat(body, continuing, *break_if),
            Statement::Break => return Flow::Break,
            Statement::Continue => return Flow::Continue,
            Statement::Return { value } => {
                return Flow::Return(value.map_or(Value::Unknown, |value| self.value(value)));
            }
            Statement::ControlBarrier(_) | Statement::MemoryBarrier(_) => self.cost.barriers += 1,
            Statement::Store { pointer, value } => self.store(*pointer, *value),
            Statement::WorkGroupUniformLoad { pointer, result } => {
                self.cost.barriers += 2;
                let value = self.load(*pointer, *result);
                self.set_value(*result, value);
            }
            Statement::Call { function, arguments, result } => {
                let arguments = arguments.iter().map(|&argument| self.value(argument)).collect();
                let value = self.call(&self.module.functions[*function], &self.info[*function], arguments);
                if let Some(result) = result {
                    self.set_value(*result, value);
                }
            }
            Statement::Atomic { .. }
            | Statement::SubgroupBallot { .. }
            | Statement::SubgroupGather { .. }
            | Statement::SubgroupCollectiveOperation { .. } => self.cost.other += 1,
            _ => {
                self.remarks.insert("a statement that compute kernels of this crate do not have".into());
            }
        }
        Flow::Next
    }

    /// A branch on something unknown: an invocation that goes on, else the dearer side.
    fn either(&mut self, accept: &'a Block, reject: &'a Block) -> Flow {
        let before = self.state();
        let accepted = self.block(accept);
        let after_accept = self.state();
        self.restore(before.clone());
        let rejected = self.block(reject);
        let dearer = after_accept.cost.weight() > self.cost.weight();
        match (accepted, rejected) {
            (Flow::Next, Flow::Next) => {
                let other = if dearer { self.locals() } else { after_accept.locals.clone() };
                if dearer {
                    self.restore(after_accept);
                }
                self.forget_differences(&other);
                // What only one side has computed is not there afterwards.
                self.computed = before.computed;
                Flow::Next
            }
            (_, Flow::Next) => {
                self.uncertain |= accepted != Flow::Continue;
                Flow::Next
            }
            (Flow::Next, _) => {
                self.restore(after_accept);
                self.uncertain |= rejected != Flow::Continue;
                Flow::Next
            }
            _ if dearer => {
                self.restore(after_accept);
                accepted
            }
            _ => rejected,
        }
    }

    fn repeat(&mut self, body: &'a Block, continuing: &'a Block, break_if: Option<Handle<Expression>>) -> Flow {
        let outer = self.uncertain;
        let flow = loop {
            self.uncertain = false;
            let before = self.locals();
            match self.block(body) {
                Flow::Break => break Flow::Next,
                Flow::Return(value) => break Flow::Return(value),
                Flow::Next | Flow::Continue => {}
            }
            self.block(continuing);
            match break_if.map(|condition| self.value(condition)) {
                None | Some(Value::Known(0)) => {}
                Some(Value::Known(_)) => break Flow::Next,
                Some(_) => self.uncertain = true,
            }
            if self.uncertain {
                self.remarks.insert("a loop of unknown length counts once".into());
                self.forget_differences(&before);
                break Flow::Next;
            }
            if self.steps >= STEPS {
                break Flow::Return(Value::Unknown);
            }
        };
        self.uncertain = outer;
        flow
    }

    /// The value of an expression that has been computed, or needs no computing.
    fn value(&self, handle: Handle<Expression>) -> Value {
        let Some(frame) = self.frames.last() else { return Value::Unknown };
        match &frame.function.expressions[handle] {
            Expression::Literal(literal) => literal_value(literal),
            Expression::Constant(constant) => {
                match &self.module.global_expressions[self.module.constants[*constant].init] {
                    Expression::Literal(literal) => literal_value(literal),
                    _ => Value::Unknown,
                }
            }
            Expression::ZeroValue(ty) if self.is_scalar(&self.module.types[*ty].inner) => Value::Known(0),
            Expression::FunctionArgument(index) => {
                frame.arguments.get(*index as usize).copied().unwrap_or(Value::Unknown)
            }
            Expression::LocalVariable(local) => {
                Value::Local { frame: self.frames.len() - 1, index: local.index(), whole: true }
            }
            Expression::GlobalVariable(variable) => Value::Global { variable: *variable, member: None },
            _ => frame.values.get(handle.index()).copied().unwrap_or(Value::Unknown),
        }
    }

    /// Computes an expression, and counts it unless its value is known.
    fn compute(&mut self, handle: Handle<Expression>) -> Value {
        let Some(frame) = self.frames.last() else { return Value::Unknown };
        let function = frame.function;
        match &function.expressions[handle] {
            Expression::Access { base, index } => match part(self.value(*base), None) {
                Value::Unknown => self.derived(PARTS, &[self.value(*base), self.value(*index)]),
                pointer => pointer,
            },
            Expression::AccessIndex { base, index } => match part(self.value(*base), Some(*index)) {
                Value::Unknown => self.derived(PARTS + 1 + *index, &[self.value(*base)]),
                pointer => pointer,
            },
            Expression::Compose { components, .. } => {
                let components: Vec<Value> = components.iter().map(|&component| self.value(component)).collect();
                self.derived(COMPOSE, &components)
            }
            Expression::Splat { value, .. } => self.derived(SPLAT, &[self.value(*value)]),
            Expression::Load { pointer } => self.load(*pointer, handle),
            Expression::Unary { op, expr } => match (op, self.value(*expr)) {
                (UnaryOperator::LogicalNot, Value::Known(value)) => Value::Known(u64::from(value == 0)),
                (op, value) => self.count(handle, UNARY + *op as u32, &[value], |cost, n| cost.other += n),
            },
            Expression::Binary { op, left, right } => {
                let wide = self.kind(*left).is_some_and(|(_, width)| width == 8);
                let operands = [self.value(*left), self.value(*right)];
                let folded = match (self.kind(*left), operands) {
                    (Some((ScalarKind::Uint | ScalarKind::Bool, width)), [Value::Known(a), Value::Known(b)]) => {
                        fold(*op, a, b, width)
                    }
                    _ => None,
                };
                if let Some(value) = folded {
                    return Value::Known(value);
                }
                let shifts = operands.iter().any(|v| matches!(v, Value::Known(value) if value.is_power_of_two()));
                self.count(handle, BINARY + *op as u32, &operands, |cost, n| match (op, wide) {
                    (BinaryOperator::Multiply, _) if shifts => cost.other += n,
                    (BinaryOperator::Multiply, false) => cost.multiplies += n,
                    (BinaryOperator::Multiply, true) => cost.wide_multiplies += n,
                    (BinaryOperator::Add | BinaryOperator::Subtract, false) => cost.adds += n,
                    (BinaryOperator::Add | BinaryOperator::Subtract, true) => cost.wide_adds += n,
                    (BinaryOperator::Divide | BinaryOperator::Modulo, _) => cost.divisions += n,
                    _ => cost.other += n,
                })
            }
            Expression::Select { condition, accept, reject } => {
                let operands = [*condition, *accept, *reject].map(|operand| self.value(operand));
                match operands {
                    [Value::Known(0), _, reject] => reject,
                    [Value::Known(_), accept, _] => accept,
                    _ => self.count(handle, SELECT, &operands, |cost, n| cost.other += n),
                }
            }
            Expression::Math { fun, arg, arg1, arg2, arg3 } => {
                let operands: Vec<Value> =
                    [Some(*arg), *arg1, *arg2, *arg3].into_iter().flatten().map(|arg| self.value(arg)).collect();
                let unsigned = matches!(self.kind(*arg), Some((ScalarKind::Uint, _)));
                match (fun, operands.as_slice()) {
                    (MathFunction::Min, &[Value::Known(a), Value::Known(b)]) if unsigned => Value::Known(a.min(b)),
                    (MathFunction::Max, &[Value::Known(a), Value::Known(b)]) if unsigned => Value::Known(a.max(b)),
                    _ => self.count(handle, MATH + *fun as u32, &operands, |cost, n| match fun {
                        MathFunction::Dot4I8Packed | MathFunction::Dot4U8Packed => cost.packed_dots += n,
                        _ => cost.other += n,
                    }),
                }
            }
            // Registers are renamed, words are taken from or put beside each other.
            Expression::As { expr, .. } => match (self.value(*expr), self.kind(handle)) {
                (Value::Known(value), Some((ScalarKind::Uint, 4))) => Value::Known(value & 0xffff_ffff),
                (Value::Known(value), Some((ScalarKind::Uint | ScalarKind::Bool, _))) => Value::Known(value),
                (value, Some((kind, width))) => self.derived(CONVERT + 16 * kind as u32 + u32::from(width), &[value]),
                _ => Value::Unknown,
            },
            _ => Value::Unknown,
        }
    }

    fn fresh(&mut self) -> Value {
        self.numbers += 1;
        Value::Same(self.numbers)
    }

    /// What `operation` made of these operands before, or a new number for it; nothing where an operand has none.
    fn derived(&mut self, operation: u32, operands: &[Value]) -> Value {
        if operands.contains(&Value::Unknown) {
            return Value::Unknown;
        }
        let key = (operation, operands.to_vec());
        if let Some(&value) = self.computed.get(&key) {
            return value;
        }
        let value = self.fresh();
        self.computed.insert(key, value);
        value
    }

    fn load(&mut self, pointer: Handle<Expression>, result: Handle<Expression>) -> Value {
        match self.value(pointer) {
            Value::Local { frame, index, whole: true } => {
                match self.frames.get(frame).and_then(|f| f.locals.get(index)) {
                    Some(Value::Unknown) | None => self.fresh(),
                    Some(&value) => value,
                }
            }
            Value::Local { .. } => self.fresh(),
            Value::Global { variable, member } => {
                let words = self.words(result);
                let global = &self.module.global_variables[variable];
                match global.space {
                    AddressSpace::Storage { .. } => {
                        *self.cost.read.entry(self.name(variable)).or_default() += words;
                        self.fresh()
                    }
                    AddressSpace::WorkGroup => {
                        self.cost.workgroup_reads += words;
                        self.fresh()
                    }
                    _ => match self.parameter(global, member) {
                        Value::Unknown => self.derived(PARAMETER + member.unwrap_or(1 << 16), &[]),
                        known => known,
                    },
                }
            }
            _ => Value::Unknown,
        }
    }

    fn store(&mut self, pointer: Handle<Expression>, value: Handle<Expression>) {
        match self.value(pointer) {
            Value::Local { frame, index, whole: true } => {
                let value = match self.value(value) {
                    value @ (Value::Known(_) | Value::Same(_)) => value,
                    _ => Value::Unknown,
                };
                self.set_local(frame, index, value);
            }
            Value::Global { variable, .. } => {
                let words = self.words(value);
                match self.module.global_variables[variable].space {
                    AddressSpace::Storage { .. } => {
                        *self.cost.written.entry(self.name(variable)).or_default() += words;
                    }
                    AddressSpace::WorkGroup => self.cost.workgroup_writes += words,
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn parameter(&self, global: &GlobalVariable, member: Option<u32>) -> Value {
        let TypeInner::Struct { members, .. } = &self.module.types[global.ty].inner else { return Value::Unknown };
        let name = member.and_then(|member| members.get(member as usize)?.name.as_deref());
        let known = self.parameters.iter().find(|(parameter, _)| Some(*parameter) == name);
        known.map_or(Value::Unknown, |&(_, value)| Value::Known(value.into()))
    }

    /// Counts an operation, unless it was done with the same operands before.
    fn count(
        &mut self,
        handle: Handle<Expression>,
        operation: u32,
        operands: &[Value],
        add: impl FnOnce(&mut Cost, u64),
    ) -> Value {
        let before = self.numbers;
        let value = self.derived(operation, operands);
        if value == Value::Unknown || self.numbers > before {
            let lanes = match self.inner(handle) {
                Some(TypeInner::Vector { size, .. }) => *size as u64,
                _ => 1,
            };
            add(&mut self.cost, lanes);
        }
        if value == Value::Unknown { self.fresh() } else { value }
    }

    fn inner(&self, handle: Handle<Expression>) -> Option<&TypeInner> {
        Some(self.frames.last()?.info[handle].ty.inner_with(&self.module.types))
    }

    fn kind(&self, handle: Handle<Expression>) -> Option<(ScalarKind, u8)> {
        match self.inner(handle)? {
            TypeInner::Scalar(scalar) | TypeInner::Vector { scalar, .. } => Some((scalar.kind, scalar.width)),
            _ => None,
        }
    }

    fn words(&self, handle: Handle<Expression>) -> u64 {
        self.inner(handle).map_or(0, |inner| u64::from(inner.size(self.module.to_ctx())) / 4)
    }

    fn is_scalar(&self, inner: &TypeInner) -> bool {
        matches!(inner, TypeInner::Scalar(_))
    }

    fn name(&self, variable: Handle<GlobalVariable>) -> String {
        self.module.global_variables[variable].name.clone().unwrap_or_default()
    }

    fn set_value(&mut self, handle: Handle<Expression>, value: Value) {
        if let Some(slot) = self.frames.last_mut().and_then(|frame| frame.values.get_mut(handle.index())) {
            *slot = value;
        }
    }

    fn set_local(&mut self, frame: usize, index: usize, value: Value) {
        if let Some(slot) = self.frames.get_mut(frame).and_then(|frame| frame.locals.get_mut(index)) {
            *slot = value;
        }
    }

    fn locals(&self) -> Vec<Vec<Value>> {
        self.frames.iter().map(|frame| frame.locals.clone()).collect()
    }

    fn state(&self) -> State {
        State { cost: self.cost.clone(), locals: self.locals(), computed: self.computed.clone() }
    }

    fn restore(&mut self, state: State) {
        self.cost = state.cost;
        self.computed = state.computed;
        self.frames.iter_mut().zip(state.locals).for_each(|(frame, locals)| frame.locals = locals);
    }

    /// Variables that are not what they are in `other` are not known.
    fn forget_differences(&mut self, other: &[Vec<Value>]) {
        let here = self.frames.iter_mut().flat_map(|frame| &mut frame.locals);
        here.zip(other.iter().flatten()).filter(|(here, other)| *here != *other).for_each(|(here, _)| {
            *here = Value::Unknown;
        });
    }
}

fn part(base: Value, index: Option<u32>) -> Value {
    match base {
        Value::Local { frame, index, .. } => Value::Local { frame, index, whole: false },
        Value::Global { variable, .. } => Value::Global { variable, member: index },
        _ => Value::Unknown,
    }
}

fn literal_value(literal: &Literal) -> Value {
    match *literal {
        Literal::U32(value) => Value::Known(value.into()),
        Literal::U64(value) => Value::Known(value),
        Literal::Bool(value) => Value::Known(value.into()),
        _ => Value::Unknown,
    }
}

/// An operation on known unsigned operands of `width` bytes (truth values: 1).
fn fold(op: BinaryOperator, a: u64, b: u64, width: u8) -> Option<u64> {
    let wrap = |value: u64| if width == 8 { value } else { value & 0xffff_ffff };
    let shift = u32::try_from(b).ok().filter(|&shift| shift < 8 * u32::from(width));
    Some(match op {
        BinaryOperator::Add => wrap(a.wrapping_add(b)),
        BinaryOperator::Subtract => wrap(a.wrapping_sub(b)),
        BinaryOperator::Multiply => wrap(a.wrapping_mul(b)),
        BinaryOperator::Divide => a.checked_div(b)?,
        BinaryOperator::Modulo => a.checked_rem(b)?,
        BinaryOperator::Equal => u64::from(a == b),
        BinaryOperator::NotEqual => u64::from(a != b),
        BinaryOperator::Less => u64::from(a < b),
        BinaryOperator::LessEqual => u64::from(a <= b),
        BinaryOperator::Greater => u64::from(a > b),
        BinaryOperator::GreaterEqual => u64::from(a >= b),
        BinaryOperator::And | BinaryOperator::LogicalAnd => a & b,
        BinaryOperator::InclusiveOr | BinaryOperator::LogicalOr => a | b,
        BinaryOperator::ExclusiveOr => a ^ b,
        BinaryOperator::ShiftLeft => wrap(a << shift?),
        BinaryOperator::ShiftRight => a >> shift?,
    })
}

impl Cost {
    /// What two ways through a kernel are compared by.
    fn weight(&self) -> u64 {
        let memory: u64 = self.read.values().chain(self.written.values()).sum();
        self.operations() + 4 * memory + self.workgroup_reads + self.workgroup_writes + self.barriers
    }
}
