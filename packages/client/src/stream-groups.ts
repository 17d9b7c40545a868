/** Groups of streams at the broker. Messages are consumed from a group as from a queue: `consume(Clicks.group('billing'), …)`. */
import { OP, type GroupInfo as WireGroupInfo, type GroupOptionName } from '@sluice/protocol'
import { settingsOf, wireOptions } from './option-paths.js'
import { onlyKnown, queueOf, type CallOptions, type QueueRef } from './options.js'
import type { QueueOptions, QueueSettings } from './queues.js'
import { RESULT, type Body, type Repeat, type Requests } from './requests.js'
import { CALL_OPTIONS, malformed, withoutUndefined } from './selection.js'
import { readStart, type ReadFrom } from './streams.js'

/** Options of a group: those of a queue that do not concern how messages are accepted or stored. */
export type GroupOptions = Pick<
  QueueOptions,
  | 'maxDeliveries'
  | 'retry'
  | 'processingTimeout'
  | 'keyConcurrency'
  | 'onFail'
  | 'deadLetter'
  | 'single'
  | 'rate'
  | 'keyRate'
>

/** All options of a group. Durations are in milliseconds. */
export type GroupSettings = Pick<QueueSettings, keyof GroupOptions & keyof QueueSettings>

/** Options of `groups.ensure`. */
export interface EnsureGroupOptions extends GroupOptions {
  /** Where the group begins if it is created. Default `'first'`: at the oldest message that is kept. */
  readonly from?: ReadFrom
  /** Changes the options of a group that exists, instead of rejecting with QUEUE_CONFLICT. Default false. */
  readonly update?: boolean
}

/** The state of a group at the time of the call. `lag` is the number of messages that are not done. */
export interface GroupInfo extends Omit<WireGroupInfo, 'options' | 'createdAtMs'> {
  readonly options: GroupSettings
  readonly createdAt: Date
}

const OPTION_PATHS = {
  maxDeliveries: ['maxDeliveries'],
  retryInitialMs: ['retry', 'initial'],
  retryMaxMs: ['retry', 'max'],
  processingTimeoutMs: ['processingTimeout'],
  keyConcurrency: ['keyConcurrency'],
  onFail: ['onFail'],
  deadLetter: ['deadLetter'],
  single: ['single'],
  rateMessages: ['rate', 'messages'],
  ratePerMs: ['rate', 'per'],
  keyRateMessages: ['keyRate', 'messages'],
  keyRatePerMs: ['keyRate', 'per'],
} as const satisfies Record<GroupOptionName, readonly [keyof GroupOptions, string?]>

/**
 * `sluice.groups`. A group is named by `stream.group(name)` or `'stream@name'`. Every call may reject with INVALID_NAME,
 * TIMEOUT, ABORTED or CLOSED, besides the errors that its own description names.
 */
export class Groups {
  readonly #requests: Requests

  /** @internal */
  constructor(requests: Requests) {
    this.#requests = requests
  }

  /**
   * Creates the group if it does not exist. If it exists, only the options that are set are compared with its options.
   *
   * @throws SluiceError QUEUE_NOT_FOUND when there is no such stream; QUEUE_CONFLICT when the group exists with other options and
   * `update` is not true; MESSAGE_NOT_FOUND when the stream does not keep the offset; INVALID_OPTION, OPTION_CONFLICT,
   * DEAD_LETTER_CYCLE, TOO_MANY_QUEUES
   * @example
   * await sluice.groups.ensure('clicks@billing', { from: 'first', maxDeliveries: 5 })
   */
  async ensure(
    group: QueueRef,
    options: EnsureGroupOptions = {},
    call?: CallOptions,
  ): Promise<{ readonly created: boolean; readonly group: GroupInfo }> {
    const { update, from, ...named } = options
    const place = from === undefined ? {} : placeFields(from, 'from', 'fromMs')
    const fields = { kind: 'group', options: wireOptions('group', OPTION_PATHS, named), update, ...place }
    const result = await this.#call(OP.ENSURE, group, 'again', call, fields)
    if (typeof result['created'] !== 'boolean') throw malformed('ENSURE')
    return { created: result['created'], group: groupInfo('ENSURE', result['group']) }
  }

  /** Resolves with the state and the options of a group. @throws SluiceError QUEUE_NOT_FOUND */
  async get(group: QueueRef, call?: CallOptions): Promise<GroupInfo> {
    const result = await this.#call(OP.GET, group, 'again', call, { kind: 'group' })
    return groupInfo('GET', result['group'])
  }

  /** Resolves with the groups of a stream, or all groups, ordered by name. The deadline applies to each page. */
  async list(stream?: QueueRef, call?: CallOptions): Promise<GroupInfo[]> {
    const all: GroupInfo[] = []
    const of = stream === undefined ? undefined : queueOf(stream).name
    for (let after: string | undefined; ;) {
      const fields = { kind: 'group', stream: of, after }
      const { groups, more } = await this.#call(OP.LIST, undefined, 'again', call, fields)
      if (!Array.isArray(groups)) throw malformed('LIST')
      for (const group of groups) all.push(groupInfo('LIST', group))
      if (more !== true) return all
      const last = all.at(-1)?.name
      // A page without a new group would make this loop endless.
      if (groups.length === 0 || last === after) throw malformed('LIST')
      after = last
    }
  }

  /**
   * Moves the group to another place of its stream. Its leases end, and messages lose their attempts. Dead letters before the
   * new place stay.
   * @throws SluiceError QUEUE_NOT_FOUND, MESSAGE_NOT_FOUND; CONNECTION_LOST with `outcome: 'unknown'`
   * @example
   * await sluice.groups.move('clicks@billing', { to: { offset: 0 } })
   */
  async move(group: QueueRef, options: { readonly to: ReadFrom }, call?: CallOptions): Promise<GroupInfo> {
    onlyKnown('groups.move', options, ['to'])
    const result = await this.#call(OP.MOVE, group, 'once', call, placeFields(options.to, 'to', 'toMs'))
    return groupInfo('MOVE', result['group'])
  }

  /**
   * Deletes the group, and resolves with the number of messages that were not done. The stream keeps its messages.
   * @throws SluiceError QUEUE_NOT_FOUND; CONNECTION_LOST with `outcome: 'unknown'`
   */
  async delete(group: QueueRef, call?: CallOptions): Promise<{ readonly messages: number }> {
    const { messages } = await this.#call(OP.DELETE, group, 'once', call, { kind: 'group' })
    if (typeof messages !== 'number') throw malformed('DELETE')
    return { messages }
  }

  async #call(
    opcode: number,
    group: QueueRef | undefined,
    repeat: Repeat,
    call: CallOptions | undefined,
    fields: Body,
  ): Promise<Body> {
    if (call !== undefined) onlyKnown('groups', call, CALL_OPTIONS)
    const name = group === undefined ? undefined : queueOf(group).name
    return this.#requests.send(opcode, withoutUndefined({ name, ...fields }), repeat, call, RESULT)
  }
}

// A place of a stream, as on the wire.
function placeFields(place: ReadFrom, at: string, time: string): Body {
  const start = readStart(place)
  if (typeof start === 'string') return { [at]: start }
  return 'offset' in start ? { [at]: start.offset } : { [time]: start.timeMs }
}

function groupInfo(frame: string, value: unknown): GroupInfo {
  if (typeof value !== 'object' || value === null) throw malformed(frame)
  const { options, createdAtMs, ...rest } = value as WireGroupInfo
  if (typeof rest.name !== 'string' || typeof options !== 'object' || options === null) throw malformed(frame)
  if (!Number.isSafeInteger(createdAtMs)) throw malformed(frame)
  const settings = settingsOf(OPTION_PATHS, options) as GroupSettings
  return { ...rest, createdAt: new Date(createdAtMs), options: settings }
}
