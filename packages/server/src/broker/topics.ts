/**
 * Topics: which queues get the messages that are published to a name. Owns the bindings: adds, removes and lists them,
 * finds the targets of a publish, and publishes to them.
 *
 * Invariants: the bindings here are those of the registry, and the target of each exists. A queue gets each message at
 * most once, however many of its bindings match.
 */
import {
  BATCH_HEADER_BYTES,
  RECORD_FLAG,
  SluiceError,
  batchCount,
  bindingHeaders,
  headerMatch,
  readRecordOptions,
  readTopicAddress,
  recordSize,
  topicName,
  type BindingInfo,
  type BindingRequest,
  type BindingsRequest,
  type Body,
  type HeaderMatch,
  type QueueName,
  type RoutesRequest,
} from '@sluice/protocol'
import type { Queue } from '../queue/index.js'
import { DEFINITION, type Definition } from '../state/definitions.js'
import type { Producer } from '../state/producers.js'
import type { State } from '../state/state.js'
import type { BatchBytes, RecordRange, Target } from './commands.js'
import { PatternTrie } from './pattern-trie.js'
import type { Registry } from './registry.js'
import { TARGETS_MAX, type SharedIntake } from './shared-intake.js'
import type { Turn } from './turn.js'

/** Maximum number of bindings. */
export const BINDINGS_MAX = 65_536
/** Maximum number of bindings with the same pattern. */
export const PATTERN_BINDINGS_MAX = 1_024
/** Maximum number of comparisons of headers for one batch. They take about 20 ms. */
export const HEADER_CHECKS_MAX = 1 << 20
/** Maximum number of names whose routes are remembered, and of targets in these routes. */
const ROUTES_MAX = 1_024
const ROUTES_TARGETS_MAX = 65_536
/** Maximum number and estimated size of the bindings in one answer. */
const PAGE_BINDINGS = 100
const PAGE_BYTES = 40 << 10

interface Binding {
  readonly id: number
  readonly pattern: string
  readonly queue: Queue
  readonly match: HeaderMatch | undefined
  readonly definition: Definition
}

/** Where the messages of one topic go. */
interface Route {
  /** Targets that get every message. */
  readonly whole: readonly Target[]
  /** Further targets, and the headers that a message must have. */
  readonly conditional: readonly Conditional[]
}

interface Conditional {
  readonly queue: Queue
  readonly matches: readonly HeaderMatch[]
}

export interface BindingsPage {
  readonly bindings: readonly BindingInfo[]
  readonly more: boolean
}

export interface TopicsOptions {
  readonly bindingsMax?: number
}

export class Topics {
  readonly #state: State
  readonly #registry: Registry
  readonly #sharedIntake: SharedIntake
  readonly #turn: Turn
  readonly #bindingsMax: number
  readonly #trie = new PatternTrie<Binding>()
  /** The bindings of each queue, by the text of their definitions. */
  readonly #byQueue = new Map<Queue, Map<string, Binding>>()
  #count = 0
  /** All bindings in ascending order of id; undefined while they must be sorted again. */
  #sorted: readonly Binding[] | undefined
  /** Routes of recently used names. A change of bindings clears it. */
  readonly #routes = new Map<string, Route>()
  #routesTargets = 0

  constructor(
    state: State,
    registry: Registry,
    sharedIntake: SharedIntake,
    turn: Turn,
    { bindingsMax = BINDINGS_MAX }: TopicsOptions,
  ) {
    this.#state = state
    this.#registry = registry
    this.#sharedIntake = sharedIntake
    this.#turn = turn
    this.#bindingsMax = bindingsMax
    for (const definition of registry) if (definition.kind === DEFINITION.binding) this.#restore(definition)
  }

  /**
   * Binds the queue to the pattern. Returns `changed: false` if the same binding exists.
   * @throws SluiceError QUEUE_NOT_FOUND, TOO_MANY_BINDINGS, TOO_MANY_DEFINITIONS, DEFINITION_TOO_LARGE, MEMORY_FULL
   */
  bind(request: BindingRequest): { readonly changed: boolean; readonly id: number } {
    const { pattern } = request
    const queue = this.#state.queue(request.target)
    const text = textOf(request)
    const existing = this.#byQueue.get(queue)?.get(text)
    if (existing !== undefined) return { changed: false, id: existing.id }
    if (this.#count >= this.#bindingsMax) {
      throw new SluiceError(
        'TOO_MANY_BINDINGS',
        `There are ${this.#count} bindings; at most ${this.#bindingsMax} are allowed.`,
      )
    }
    const alike = this.#trie.at(pattern).size
    if (alike >= PATTERN_BINDINGS_MAX) {
      throw new SluiceError(
        'TOO_MANY_BINDINGS',
        `There are ${alike} bindings with the pattern ${pattern}; at most ${PATTERN_BINDINGS_MAX} are allowed.`,
      )
    }
    const number = this.#turn.nowMs
    const definition = this.#registry.define({ kind: DEFINITION.binding, owner: queue.id, text, number })
    this.#add(bindingOf(definition, queue))
    return { changed: true, id: definition.id }
  }

  /** Returns `changed: false` if there is no such binding. @throws SluiceError QUEUE_NOT_FOUND */
  unbind(request: BindingRequest): { readonly changed: boolean } {
    const binding = this.#byQueue.get(this.#state.queue(request.target))?.get(textOf(request))
    if (binding === undefined) return { changed: false }
    this.#registry.undefine(binding.definition)
    this.#remove(binding)
    return { changed: true }
  }

  /** Called when a queue is deleted. The fact about its deletion removes the definitions of its bindings. */
  forget(queue: Queue): void {
    for (const binding of this.#byQueue.get(queue)?.values() ?? []) this.#remove(binding)
  }

  /** A page of the bindings, in order of id. @throws SluiceError QUEUE_NOT_FOUND */
  list({ pattern, target, after }: BindingsRequest): BindingsPage {
    return pageOf(this.#listed(pattern, target), after)
  }

  #listed(pattern: string | undefined, target: QueueName | undefined): readonly Binding[] {
    if (target !== undefined) {
      const bindings = [...(this.#byQueue.get(this.#state.queue(target))?.values() ?? [])]
      return inOrder(
        pattern === undefined ? bindings : bindings.filter((binding) => binding.pattern === pattern),
      )
    }
    if (pattern !== undefined) return inOrder([...this.#trie.at(pattern)])
    return (this.#sorted ??= inOrder([...this.#byQueue.values()].flatMap((each) => [...each.values()])))
  }

  /** A page of the bindings by which a message with this topic and these headers reaches queues. */
  routes({ topic, headers, after }: RoutesRequest): BindingsPage {
    const matched = this.#trie
      .match(topic)
      .filter(({ match }) => headers === undefined || match === undefined || isMatch(match, headers))
    return pageOf(inOrder(matched), after)
  }

  /**
   * Accepts the batch of a producer for all targets of the topic, or for none of them, and returns their number. A batch
   * that is sent again gets its first answer. `unanswered` is described at `Intake.publish`.
   * @throws SluiceError the refusal
   */
  publish(producer: Producer, address: string, batch: BatchBytes, unanswered: number): number {
    const targetsOf = (flags: number): readonly Target[] => this.targetsOf(address, batch, flags)
    return this.#sharedIntake.publish(producer, targetsOf, batch, unanswered)
  }

  /**
   * The targets of the records of a batch that is published to `address`; none only if the address says that messages
   * without a target are dropped. `flags` are those of all records of the batch, which were checked.
   * @throws SluiceError INVALID_TOPIC, UNROUTABLE, TOO_MANY_TARGETS, BATCH_TOO_LARGE
   */
  targetsOf(address: string, batch: BatchBytes, flags: number): readonly Target[] {
    const { name, drops } = readTopicAddress(address)
    const { whole, conditional } = this.#route(name)
    let targets = whole
    if (conditional.length > 0 && (flags & RECORD_FLAG.headers) !== 0) {
      const chosen = choose(name, conditional, batch, whole.length > 0 || drops)
      if (chosen.length > 0) targets = [...whole, ...chosen]
    }
    if (targets.length > TARGETS_MAX) throw tooManyTargets(name, targets.length)
    if (targets.length === 0 && !drops) throw unroutable(name)
    return targets
  }

  #route(name: string): Route {
    const known = this.#routes.get(name)
    if (known !== undefined) return known
    const route = routeOf(this.#trie.match(topicName(name)))
    const { length } = route.whole
    const targets = length + route.conditional.reduce((sum, { matches }) => sum + 1 + matches.length, 0)
    if (this.#routes.size >= ROUTES_MAX || this.#routesTargets + targets > ROUTES_TARGETS_MAX)
      this.#forgetRoutes()
    this.#routes.set(name, route)
    this.#routesTargets += targets
    return route
  }

  #restore(definition: Definition): void {
    // A definition with an owner is gone when the owner is gone.
    this.#add(bindingOf(definition, this.#state.queuesById.get(definition.owner)!))
  }

  #add(binding: Binding): void {
    const { pattern, queue, definition } = binding
    this.#trie.add(pattern, binding)
    let bindings = this.#byQueue.get(queue)
    if (bindings === undefined) this.#byQueue.set(queue, (bindings = new Map()))
    bindings.set(definition.text, binding)
    this.#count++
    this.#changed()
  }

  #remove(binding: Binding): void {
    const { pattern, queue, definition } = binding
    this.#trie.remove(pattern, binding)
    const bindings = this.#byQueue.get(queue)!
    bindings.delete(definition.text)
    if (bindings.size === 0) this.#byQueue.delete(queue)
    this.#count--
    this.#changed()
  }

  #changed(): void {
    this.#sorted = undefined
    this.#forgetRoutes()
  }

  #forgetRoutes(): void {
    if (this.#routes.size > 0) this.#routes.clear()
    this.#routesTargets = 0
  }
}

// The text of a definition. Two bindings of a queue with the same text are the same binding.
function textOf({ pattern, match }: BindingRequest): string {
  if (match === undefined) return JSON.stringify({ pattern })
  const { kind, headers } = match
  const sorted = Object.fromEntries(Object.entries(headers).toSorted(([a], [b]) => (a < b ? -1 : 1)))
  return JSON.stringify({ pattern, headers: { [kind]: sorted } })
}

function bindingOf(definition: Definition, queue: Queue): Binding {
  const { pattern, headers } = JSON.parse(definition.text) as Body & { readonly pattern: string }
  return { id: definition.id, pattern, queue, match: headerMatch(headers), definition }
}

function routeOf(bindings: readonly Binding[]): Route {
  const whole = new Map<Queue, Target>()
  for (const { queue, match } of bindings)
    if (match === undefined) whole.set(queue, { queue, ranges: undefined })
  const conditional = new Map<Queue, HeaderMatch[]>()
  for (const { queue, match } of bindings) {
    if (match === undefined || whole.has(queue)) continue
    const matches = conditional.get(queue)
    if (matches === undefined) conditional.set(queue, [match])
    else matches.push(match)
  }
  return {
    whole: [...whole.values()],
    conditional: [...conditional].map(([queue, matches]) => ({ queue, matches })),
  }
}

/**
 * The targets that get records because of their headers. Every record must have a target, unless `mayMiss` is true.
 * @throws SluiceError UNROUTABLE, BATCH_TOO_LARGE
 */
function choose(
  name: string,
  conditional: readonly Conditional[],
  { bytes, at }: BatchBytes,
  mayMiss: boolean,
): Target[] {
  const count = batchCount(bytes, at)
  checkWork(name, conditional, count)
  const ranges: { index: number; count: number }[][] = conditional.map(() => [])
  let record = at + BATCH_HEADER_BYTES
  for (let index = 0; index < count; index++, record += recordSize(bytes, record)) {
    const { headers = NO_HEADERS } = readRecordOptions(bytes, record)
    let isRouted = mayMiss
    conditional.forEach(({ matches }, target) => {
      if (!matches.some((match) => isMatch(match, headers))) return
      isRouted = true
      const last = ranges[target]!.at(-1)
      if (last !== undefined && last.index + last.count === index) last.count++
      else ranges[target]!.push({ index, count: 1 })
    })
    if (!isRouted) throw unroutable(name, index, count)
  }
  const targets: Target[] = []
  conditional.forEach(({ queue }, target) => {
    const found: readonly RecordRange[] = ranges[target]!
    if (found.length === 0) return
    targets.push({ queue, ranges: found[0]!.count === count ? undefined : found })
  })
  return targets
}

const NO_HEADERS: Readonly<Record<string, string>> = {}

function isMatch({ kind, headers }: HeaderMatch, of: Readonly<Record<string, string>>): boolean {
  const pairs = Object.entries(headers)
  const isEqual = ([name, value]: [string, string]): boolean => of[name] === value
  return kind === 'all' ? pairs.every(isEqual) : pairs.some(isEqual)
}

// @throws SluiceError BATCH_TOO_LARGE
function checkWork(name: string, conditional: readonly Conditional[], count: number): void {
  let headers = 0
  for (const { matches } of conditional)
    for (const match of matches) headers += Object.keys(match.headers).length
  if (headers * count <= HEADER_CHECKS_MAX) return
  throw new SluiceError(
    'BATCH_TOO_LARGE',
    `The bindings that match the topic ${name} name ${headers} headers, which are compared with each of ${count} messages; at most ${HEADER_CHECKS_MAX} comparisons are made for one batch.`,
  )
}

function unroutable(name: string, index = 0, count = 1): SluiceError {
  const which = count === 1 ? 'the message' : `the message ${index} of ${count}`
  return new SluiceError('UNROUTABLE', `No binding matches the topic ${name} and the headers of ${which}.`)
}

function tooManyTargets(name: string, targets: number): SluiceError {
  return new SluiceError(
    'TOO_MANY_TARGETS',
    `The topic ${name} reaches ${targets} queues; one publish can reach at most ${TARGETS_MAX}.`,
  )
}

function inOrder(bindings: readonly Binding[]): readonly Binding[] {
  return bindings.toSorted((a, b) => a.id - b.id)
}

function pageOf(bindings: readonly Binding[], after: number): BindingsPage {
  let from = 0
  for (let to = bindings.length; from < to;) {
    const middle = (from + to) >>> 1
    if (bindings[middle]!.id <= after) from = middle + 1
    else to = middle
  }
  const page: BindingInfo[] = []
  let bytes = 0
  for (const { id, pattern, queue, match, definition } of bindings.slice(from, from + PAGE_BINDINGS)) {
    bytes += definition.text.length * 3 + queue.name.length
    if (page.length > 0 && bytes > PAGE_BYTES) break
    const headers = match === undefined ? {} : { headers: bindingHeaders(match) }
    page.push({ id, pattern, target: queue.name, ...headers, createdAtMs: definition.number })
  }
  return { bindings: page, more: from + page.length < bindings.length }
}
