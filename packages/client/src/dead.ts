/** Dead letters: messages that are not delivered any more, and stay in their queue until an operator acts on them. */
import { LIMITS, OP, SluiceError, isGroupName } from '@sluice/protocol'
import { onlyKnown, queueOf, whole, type CallOptions, type QueueRef } from './options.js'
import { messagesAnswer, type MessagePage, type PeekedMessage } from './peeked.js'
import { RESULT, type Body, type Requests } from './requests.js'
import {
  CALL_OPTIONS,
  FILTER_FIELDS,
  cutShort,
  filterField,
  malformed,
  messagesWere,
  walk,
  withoutUndefined,
  type MessageFilter,
  type Pace,
  type SoFar,
  type Step,
} from './selection.js'

/** Options of `dead.list`. */
export interface DeadListOptions extends MessageFilter {
  /** Offset at which the page begins. Default 0. */
  readonly from?: number
  /** Maximum number of messages in the page, 1 to 1,000. Default 1,000; large messages make the page shorter. */
  readonly limit?: number
}

/** Selects dead letters: those that match the filter and, if `offsets` is set, have one of these offsets. */
export interface DeadSelection extends MessageFilter {
  /** Only messages at these offsets. */
  readonly offsets?: readonly number[]
  /** Maximum number of messages. Default: all. */
  readonly limit?: number
  /** Changes nothing, and counts the messages that match. Default false. */
  readonly dryRun?: boolean
}

/** Options of `dead.redrive`. */
export interface RedriveOptions extends DeadSelection, Pace {
  /** Moves the messages to another queue. Default: back to their own queue. */
  readonly to?: QueueRef
  /** Includes messages that were redriven ten times already. Default false. */
  readonly force?: boolean
}

/**
 * Result of a redrive. With `dryRun` nothing is redriven, and `matched` is the number of messages that would be
 * selected.
 */
export interface Redriven {
  /** Messages selected. */
  readonly matched: number
  /** Number of selected messages that were redriven. */
  readonly redriven: number
  /**
   * Number of selected messages that stay dead: messages that were redriven ten times already (see `force`), and
   * `barred` messages.
   */
  readonly guarded: number
  /**
   * Number of `guarded` messages that have the same id as a pending message, in a queue with `unique: 'pending'`.
   * `force` does not redrive them. `dryRun` counts each page of 1,000 messages by itself, so it does not count a
   * message that is barred only by a message of another page.
   */
  readonly barred: number
}

/**
 * Result of a deletion of dead letters. With `dryRun` nothing is deleted, and `matched` is the number of messages that
 * would be deleted.
 */
export interface DeadDeleted {
  /** Messages selected. */
  readonly matched: number
  readonly deleted: number
}

const SELECTION_FIELDS = [...FILTER_FIELDS, 'offsets', 'limit', 'dryRun'] as const

/**
 * `sluice.dead`. Every call may reject with QUEUE_NOT_FOUND, TIMEOUT, ABORTED or CLOSED, besides the errors that its
 * own description names.
 */
export class DeadLetters {
  readonly #requests: Requests

  /** @internal */
  constructor(requests: Requests) {
    this.#requests = requests
  }

  /**
   * Lists one page of the dead letters that match the filter, in the order of their offsets.
   *
   * @param options The filter; `from` and `limit` select the page. The `next` of a page is the `from` of the page after
   * it.
   * @throws SluiceError INVALID_ARGUMENT
   * @example
   * const { messages, next } = await sluice.dead.list('orders', { reason: 'rejected', olderThan: '1h' })
   */
  async list<Input>(
    queue: QueueRef<Input, unknown>,
    options: DeadListOptions = {},
    call?: CallOptions,
  ): Promise<MessagePage<Input>> {
    onlyKnown('dead.list', options, [...FILTER_FIELDS, 'from', 'limit'])
    const { from, limit, ...filter } = options
    return this.#peek(queue, withoutUndefined({ from, limit, ...filterField(filter) }), call)
  }

  /**
   * Reads the dead letter at an offset.
   *
   * @throws SluiceError MESSAGE_NOT_FOUND
   * @example
   * const { reason, error, body } = await sluice.dead.get('orders', 4711)
   */
  async get<Input>(
    queue: QueueRef<Input, unknown>,
    offset: number,
    call?: CallOptions,
  ): Promise<PeekedMessage<Input>> {
    whole('offset', offset, 0, Number.MAX_SAFE_INTEGER)
    const { messages } = await this.#peek(queue, { from: offset, limit: 1 }, call)
    const [message] = messages
    if (message?.offset === offset) return message
    const { name } = queueOf(queue)
    const kind = isGroupName(name) ? 'group' : 'queue'
    throw new SluiceError('MESSAGE_NOT_FOUND', `The ${kind} ${name} has no dead message at offset ${offset}.`)
  }

  async #peek<Input>(
    queue: QueueRef<Input, unknown>,
    fields: Body,
    call: CallOptions | undefined,
  ): Promise<MessagePage<Input>> {
    if (call !== undefined) onlyKnown('dead', call, CALL_OPTIONS)
    const { name } = queueOf(queue)
    const body = { name, state: 'dead', ...fields }
    return this.#requests.send(OP.PEEK, body, 'again', call, messagesAnswer<Input>(name))
  }

  /**
   * Redrives dead letters, to their own queue or to another one. In its own queue, a message keeps its offset and
   * starts again at attempt 1. In another queue, it becomes a new message with an `origin`.
   *
   * The call works page by page. An error or the signal can end it early. Messages that were redriven before that stay
   * redriven: the error has `outcome: 'partial'`, and `progress` has the counts. A second call continues with the
   * messages that are still dead.
   *
   * @param options The filter or `offsets`; `to`; `rate`, in messages per second; `limit`; `dryRun`; `force`.
   * @param call `timeout` is the deadline of each page.
   * @throws SluiceError INVALID_ARGUMENT; QUEUE_NOT_FOUND, also of `to`; CONNECTION_LOST with `outcome: 'unknown'`
   * @example
   * await sluice.dead.redrive('orders', { error: 'ECONNREFUSED', dryRun: true })   // { matched: 310, … }
   * await sluice.dead.redrive('orders', { error: 'ECONNREFUSED', rate: 50 })
   */
  async redrive(queue: QueueRef, options: RedriveOptions = {}, call?: CallOptions): Promise<Redriven> {
    onlyKnown('dead.redrive', options, [...SELECTION_FIELDS, 'to', 'rate', 'force'])
    const { to, rate, force, ...selection } = options
    const fields = { to: to === undefined ? undefined : queueOf(to).name, force }
    const counts = { matched: 0, redriven: 0, guarded: 0, barred: 0 }
    const soFar = (): SoFar => ({
      progress: counts.redriven === 0 ? undefined : counts,
      text: `Before that, ${messagesWere(counts.redriven)} redriven.`,
    })
    await this.#walk({ frame: 'REDRIVE', queue, selection, fields, rate, counts, soFar }, call)
    return counts
  }

  /**
   * Deletes dead letters permanently.
   *
   * @param options The filter or `offsets`; `limit`; `dryRun`.
   * @param call `timeout` is the deadline of each page.
   * @throws SluiceError INVALID_ARGUMENT; CONNECTION_LOST with `outcome: 'unknown'`
   * @example
   * await sluice.dead.delete('orders', { olderThan: '30d' })
   */
  async delete(queue: QueueRef, options: DeadSelection = {}, call?: CallOptions): Promise<DeadDeleted> {
    onlyKnown('dead.delete', options, SELECTION_FIELDS)
    const counts = { matched: 0, discarded: 0 }
    const done = (): DeadDeleted => ({ matched: counts.matched, deleted: counts.discarded })
    const soFar = (): SoFar => ({
      progress: counts.discarded === 0 ? undefined : done(),
      text: `Before that, ${messagesWere(counts.discarded)} deleted.`,
    })
    await this.#walk({ frame: 'DISCARD', queue, selection: options, fields: {}, counts, soFar }, call)
    return done()
  }

  /** Sends one request for each page, and adds the answers to `counts`. */
  async #walk(
    { frame, queue, selection, fields, rate, counts, soFar }: DeadWalk,
    call: CallOptions | undefined,
  ): Promise<void> {
    const { offsets, limit, dryRun, ...filter } = selection
    if (call !== undefined) onlyKnown('dead', call, CALL_OPTIONS)
    const { name } = queueOf(queue)
    const body = withoutUndefined({ name, dryRun, ...filterField(filter), ...fields })
    const pace = withoutUndefined({ limit, rate: dryRun === true ? undefined : rate })
    const list = offsets === undefined ? undefined : sorted(offsets)
    const take = async (limit: number, from = 0): Promise<Step<number>> => {
      const chosen = list?.slice(firstFrom(list, from)).slice(0, Math.min(limit, LIMITS.pageMessagesMax))
      if (chosen?.length === 0) return { matched: 0, next: undefined }
      const place = chosen === undefined ? { from } : { offsets: chosen }
      // The request is not repeated after a lost connection, because a second request could select messages that died
      // in the meantime.
      const answer = await this.#requests.send(
        OP[frame],
        { ...body, ...place, limit },
        dryRun === true ? 'again' : 'answered',
        call,
        RESULT,
      )
      const error = cutShort(frame, answer)
      for (const count of Object.keys(counts)) {
        const value = answer[count]
        if (!Number.isSafeInteger(value)) throw malformed(frame)
        counts[count] = counts[count]! + (value as number)
      }
      const matched = answer['matched'] as number
      if (error !== undefined) return { matched, next: undefined, error }
      const { next } = answer
      if (next !== null && (!Number.isSafeInteger(next) || (next as number) <= from)) throw malformed(frame)
      if (next !== null) return { matched, next: next as number }
      return { matched, next: chosen === undefined ? undefined : chosen.at(-1)! + 1 }
    }
    // A dry run changes nothing, so it has no progress to report.
    await walk<number>(pace, call, take, dryRun === true ? NOTHING : soFar)
  }
}

/** A walk over dead letters: the request for each page, and the counts of all answers. */
interface DeadWalk {
  readonly frame: 'REDRIVE' | 'DISCARD'
  readonly queue: QueueRef
  readonly selection: DeadSelection
  /** Further fields of the request. */
  readonly fields: Record<string, unknown>
  readonly rate?: number | undefined
  readonly counts: { matched: number; [name: string]: number }
  readonly soFar: () => SoFar
}

const NOTHING = (): SoFar => ({ progress: undefined, text: '' })

/** @throws SluiceError INVALID_ARGUMENT */
function sorted(offsets: readonly number[]): number[] {
  if (!Array.isArray(offsets))
    throw new SluiceError('INVALID_ARGUMENT', '`offsets` must be a list of offsets.')
  const all = offsets.map((offset: unknown) => whole('offsets', offset, 0, Number.MAX_SAFE_INTEGER))
  return [...new Set(all)].sort((a, b) => a - b)
}

function firstFrom(sorted: readonly number[], from: number): number {
  const index = sorted.findIndex((offset) => offset >= from)
  return index < 0 ? sorted.length : index
}
