/**
 * The streams by name: creates, changes, describes and deletes them. Called for requests about streams as a whole. A
 * stream is published to like a queue, so publishes do not use this class.
 *
 * Invariant: queues and streams share one namespace, and the kind of a name never changes while it exists.
 */
import {
  QUEUE_OPTION_DEFAULTS,
  STREAM_OPTIONS,
  STREAM_OPTION_DEFAULTS,
  checkStreamOptionsTogether,
  type EnsureStreamRequest,
  type QueueName,
  type QueueOptions,
  type StreamInfo,
  type StreamOptionName,
  type StreamOptions,
} from '@sluice/protocol'
import type { Queue, StreamRules } from '../queue/index.js'
import { wrongKind, type State } from '../state/state.js'
import { optionConflict, type Catalog } from './catalog.js'
import type { Turn } from './turn.js'

export class Streams {
  readonly #state: State
  readonly #catalog: Catalog
  readonly #turn: Turn

  constructor(state: State, catalog: Catalog, turn: Turn) {
    this.#state = state
    this.#catalog = catalog
    this.#turn = turn
  }

  /** @throws SluiceError WRONG_KIND, QUEUE_CONFLICT, OPTION_CONFLICT, TOO_MANY_QUEUES */
  ensure({ name, options, update }: EnsureStreamRequest): {
    readonly created: boolean
    readonly stream: StreamInfo
  } {
    const existing = this.#state.queues.get(name)
    if (existing !== undefined && existing.stream === undefined) throw wrongKind(existing, 'stream')
    const known = existing === undefined ? STREAM_OPTION_DEFAULTS : optionsOf(existing)
    const wanted = { ...known, ...options }
    checkStreamOptionsTogether(wanted)
    const differing = NAMES.filter((option) => known[option] !== wanted[option])
    if (existing === undefined) {
      const stream = this.#catalog.make(name, queueOptionsOf(wanted), { stream: rulesOf(wanted) })
      return { created: true, stream: infoOf(stream, this.#turn.nowMs) }
    }
    if (differing.length > 0) {
      if (!update) throw optionConflict('stream', name, known, wanted, differing)
      existing.stream = rulesOf(wanted)
      this.#catalog.change(existing, queueOptionsOf(wanted))
    }
    return { created: false, stream: infoOf(existing, this.#turn.nowMs) }
  }

  /** @throws SluiceError QUEUE_NOT_FOUND, WRONG_KIND */
  info(name: QueueName): StreamInfo {
    return infoOf(this.#stream(name), this.#turn.nowMs)
  }

  /** Returns at most `limit` streams in order of name, after the name `after`. `more` says whether other streams follow. */
  list(after: string, limit: number): { readonly streams: StreamInfo[]; readonly more: boolean } {
    const { names, more } = this.#catalog.namesAfter('stream', after, limit)
    return { streams: names.map((name) => this.info(name)), more }
  }

  /**
   * Deletes the stream and its messages, and returns the number of deleted messages.
   * @throws SluiceError QUEUE_NOT_FOUND, WRONG_KIND
   */
  delete(name: QueueName): number {
    const stream = this.#stream(name)
    const messages = stream.retainedMessages
    this.#catalog.remove(stream)
    return messages
  }

  #stream(name: QueueName): Queue {
    const stream = this.#state.queue(name)
    if (stream.stream === undefined) throw wrongKind(stream, 'stream')
    this.#turn.advance(stream)
    // `advance` can have released messages.
    this.#turn.changed(stream)
    return stream
  }
}

const NAMES = Object.keys(STREAM_OPTIONS) as StreamOptionName[]

function optionsOf({ options, stream }: Queue): StreamOptions {
  const all = { ...STREAM_OPTION_DEFAULTS, ...options, ...stream }
  return Object.fromEntries(NAMES.map((name) => [name, all[name]])) as StreamOptions
}

function queueOptionsOf(options: StreamOptions): QueueOptions {
  const { retainAgeMs, retainBytes, dedupWindowMs, dedupMaxIds } = options
  return { ...QUEUE_OPTION_DEFAULTS, retainAgeMs, retainBytes, dedupWindowMs, dedupMaxIds }
}

function rulesOf(options: StreamOptions): StreamRules {
  const { retainMessages, waitForGroupsBytes, compact, tombstoneAgeMs } = options
  return { retainMessages, waitForGroupsBytes, compact, tombstoneAgeMs }
}

function infoOf(stream: Queue, nowMs: number): StreamInfo {
  const first = stream.nextRetained(0)
  const { duplicates } = stream.counts
  return {
    name: stream.name,
    options: optionsOf(stream),
    messages: stream.retainedMessages,
    bytes: Math.round(stream.retainedBytes),
    first: first === -1 ? stream.next : first,
    next: stream.next,
    published: stream.next - duplicates,
    duplicates,
    heldBy: stream.hold?.group ?? null,
    heldBytes: Math.round(stream.heldBytesAt(nowMs)),
    compacted: stream.numbers!.compacted,
    // A stream has no subscriptions of its own.
    readers: stream.listeners,
    createdAtMs: stream.createdAtMs,
  }
}
