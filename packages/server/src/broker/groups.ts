/**
 * The groups of streams by name: creates, changes, moves, describes and deletes them. Called for requests about groups as a
 * whole. In everything else a group is a queue (queue/group-contents.ts).
 */
import {
  GROUP_OPTIONS,
  QUEUE_OPTION_DEFAULTS,
  SluiceError,
  streamOfGroup,
  type EnsureGroupRequest,
  type GroupInfo,
  type GroupOptionName,
  type GroupOptions,
  type MoveRequest,
  type QueueName,
  type StreamPlace,
} from '@sluice/protocol'
import type { Queue } from '../queue/index.js'
import { kindOfQueue, wrongKind, type State } from '../state/state.js'
import type { ColdChunks } from '../state/cold-chunks.js'
import { optionConflict, type Catalog } from './catalog.js'
import type { Caller, DiskRequests } from './disk-requests.js'
import type { Turn } from './turn.js'

/** Maximum number of groups of one stream. Each publish to the stream notifies all of them. */
export const GROUPS_MAX = 256

export class Groups {
  readonly #state: State
  readonly #catalog: Catalog
  readonly #cold: ColdChunks
  readonly #requests: DiskRequests
  readonly #turn: Turn

  constructor(state: State, catalog: Catalog, cold: ColdChunks, requests: DiskRequests, turn: Turn) {
    this.#state = state
    this.#catalog = catalog
    this.#cold = cold
    this.#requests = requests
    this.#turn = turn
  }

  /**
   * `from` only has an effect if the group is created.
   * @throws SluiceError QUEUE_NOT_FOUND, WRONG_KIND, QUEUE_CONFLICT, OPTION_CONFLICT, DEAD_LETTER_CYCLE, MESSAGE_NOT_FOUND,
   * TOO_MANY_QUEUES
   */
  ensure({ name, options, update, from }: EnsureGroupRequest): {
    readonly created: boolean
    readonly group: GroupInfo
  } {
    const existing = this.#state.queues.get(name)
    const wanted = { ...(existing?.options ?? QUEUE_OPTION_DEFAULTS), ...options }
    if (existing === undefined) {
      const stream = this.#streamOf(name)
      this.#catalog.checkOptions(stream.name, options, wanted)
      const start = startAt(stream, from)
      if (stream.groups.length >= GROUPS_MAX) {
        throw new SluiceError(
          'TOO_MANY_QUEUES',
          `The stream ${stream.name} has ${stream.groups.length} groups; at most ${GROUPS_MAX} are allowed.`,
        )
      }
      const rules = { streamId: stream.id, fromMs: timeOf(from) }
      const group = this.#catalog.make(name, wanted, { group: rules })
      group.moveTo(start, this.#turn.nowMs)
      this.#turn.changed(group)
      return { created: true, group: this.#infoOf(group) }
    }
    const differing = NAMES.filter((option) => existing.options[option] !== wanted[option])
    if (differing.length > 0) {
      if (!update) throw optionConflict('group', existing.name, existing.options, wanted, differing)
      this.#catalog.checkOptions(existing.source!.name, options, wanted)
      this.#catalog.change(existing, wanted)
    }
    return { created: false, group: this.#infoOf(existing) }
  }

  /** Whether the page of the chunk in which the group would begin has to be read first. */
  mustRead({ name, timeMs }: { readonly name?: unknown; readonly timeMs?: unknown }): boolean {
    if (typeof name !== 'string' || typeof timeMs !== 'number') return false
    const stream = this.#state.queues.get(streamOfGroup(name as QueueName))
    return stream?.stream !== undefined && stream.isCold(stream.retainedSince(timeMs))
  }

  /**
   * Calls `change` when the chunk in which the group begins is in memory: at once, or after it was read.
   * @throws SluiceError CORRUPT, TOO_MANY_REQUESTS; errors of `change`
   */
  whenRead<Answer>(
    name: QueueName,
    place: StreamPlace,
    caller: Caller,
    change: () => Answer,
  ): Answer | Promise<Answer> {
    if (typeof place !== 'object' || !this.mustRead({ name, ...place })) return change()
    return this.#requests.run(caller, async () => {
      while (this.mustRead({ name, ...place })) {
        const stream = this.#state.queue(streamOfGroup(name))
        await this.#cold.load(stream, stream.retainedSince(place.timeMs))
        this.#requests.resume(caller)
      }
      return change()
    })
  }

  /** @throws SluiceError QUEUE_NOT_FOUND */
  info(name: QueueName): GroupInfo {
    return this.#infoOf(this.#group(name))
  }

  /** Returns at most `limit` groups, of one stream or of all, in order of name, after the name `after`. */
  list(
    stream: string | undefined,
    after: string,
    limit: number,
  ): { readonly groups: GroupInfo[]; readonly more: boolean } {
    const prefix = stream === undefined ? '' : `${stream}@`
    const { names, more } = this.#catalog.namesAfter('group', after > prefix ? after : prefix, limit)
    const matching = names.filter((name) => name.startsWith(prefix))
    return {
      groups: matching.map((name) => this.info(name)),
      more: more && matching.length === names.length,
    }
  }

  /**
   * Moves the group. Its leases end, and its messages lose their attempts. Dead messages before the new place stay.
   * @throws SluiceError QUEUE_NOT_FOUND, MESSAGE_NOT_FOUND
   */
  move({ name, to }: MoveRequest): { readonly group: GroupInfo } {
    const group = this.#group(name)
    const start = startAt(group.source as Queue, to)
    const rules = { ...group.group!, fromMs: timeOf(to) }
    group.moveTo(start, this.#turn.nowMs)
    group.group = rules
    this.#catalog.declare(group)
    this.#turn.changed(group)
    return { group: this.#infoOf(group) }
  }

  /** Deletes the group, and returns the number of messages that were not done. @throws SluiceError QUEUE_NOT_FOUND */
  delete(name: QueueName): number {
    const group = this.#group(name)
    const { lag } = this.#infoOf(group)
    this.#catalog.remove(group)
    return lag
  }

  #group(name: QueueName): Queue {
    const group = this.#state.queues.get(name)
    if (group !== undefined) return group
    throw new SluiceError('QUEUE_NOT_FOUND', `There is no group ${JSON.stringify(name)}.`)
  }

  // @throws SluiceError QUEUE_NOT_FOUND, WRONG_KIND
  #streamOf(name: QueueName): Queue {
    const stream = this.#state.queue(streamOfGroup(name))
    if (kindOfQueue(stream) !== 'stream') throw wrongKind(stream, 'stream')
    this.#turn.advance(stream)
    // `advance` can have released messages.
    this.#turn.changed(stream)
    return stream
  }

  #infoOf(group: Queue): GroupInfo {
    const { nowMs } = this.#turn
    const stream = group.source as Queue
    const { ready, scheduled, leased, dead } = group.infoAt(nowMs)
    const position = group.position
    const behind = stream.next - group.next
    const lag = behind + ready + scheduled + leased
    return {
      name: group.name,
      stream: stream.name,
      options: optionsOf(group),
      paused: group.paused,
      position,
      lag,
      lagMs: lag === 0 ? null : Math.max(0, nowMs - publishedMs(group, stream, position, nowMs)),
      missed: group.missed,
      acked: group.acked,
      discarded: group.counts.discarded,
      scheduled,
      leased,
      dead,
      consumers: group.subscriptions.length,
      createdAtMs: group.createdAtMs,
    }
  }
}

const NAMES = Object.keys(GROUP_OPTIONS) as GroupOptionName[]

function optionsOf({ options }: Queue): GroupOptions {
  return Object.fromEntries(NAMES.map((name) => [name, options[name]])) as unknown as GroupOptions
}

function publishedMs(group: Queue, stream: Queue, position: number, nowMs: number): number {
  if (position < group.next) return group.publishedAt(position)
  if (stream.isCold(position)) return stream.chunks.summaryAt(position).firstMs
  return stream.heldChunk(position) === undefined ? nowMs : stream.publishedAt(position)
}

// The offset of a place. @throws SluiceError MESSAGE_NOT_FOUND
function startAt(stream: Queue, place: StreamPlace): number {
  const { firstKept, next, name } = stream
  const { releasedBelow } = stream.numbers!
  if (place === 'first') return firstKept
  if (place === 'last') return next
  if (typeof place === 'object') return stream.keptSince(place.timeMs)
  if (place > next) {
    throw new SluiceError(
      'MESSAGE_NOT_FOUND',
      `The stream ${name} has no message ${place} yet; its next offset is ${next}.`,
    )
  }
  if (place < releasedBelow) {
    throw new SluiceError(
      'MESSAGE_NOT_FOUND',
      `The stream ${name} does not keep message ${place} any more; its first offset is ${releasedBelow}.`,
    )
  }
  return place
}

function timeOf(place: StreamPlace): number {
  return typeof place === 'object' ? place.timeMs : 0
}
