/**
 * Schedules, in the product and in the model. The product decides when it publishes the message of a due tick within the turn;
 * the model follows it at that place and checks that the tick is the right one. At the end of each turn, each tick that is due
 * must have fired, have been refused, or have been skipped.
 */
import {
  BATCH_HEADER_BYTES,
  ERRORS,
  SCHEDULE_HEADERS,
  isTopicAddress,
  readTopicAddress,
  recordBytes,
  viewBytes,
  type ErrorCode,
  type Missed,
  type ScheduleTiming,
} from '@sluice/protocol'
import type { Broker } from '../../packages/server/src/broker/broker.js'
import { isTooFarPast } from '../rules/message.js'
import { dueTick, retryMs, tickAfter, type Ticks } from '../rules/ticks.js'
import type { Bench } from './bench.js'
import { batchOf, contentOf, recordOf } from './records.js'
import { same } from './same.js'
import { Difference, Refused, type Content } from './state.js'

/** The cron expressions of the histories, each with its ticks. */
export const CRONS: readonly { readonly cron: string; readonly timeZone?: string; readonly ticks: Ticks }[] =
  [
    { cron: '*/10 * * * * *', ticks: { startMs: 0, everyMs: 10_000 } },
    { cron: '* * * * *', timeZone: 'Europe/Berlin', ticks: { startMs: 0, everyMs: 60_000 } },
    { cron: '0 * * * *', timeZone: 'Asia/Kolkata', ticks: { startMs: 1_800_000, everyMs: 3_600_000 } },
  ]

export interface ScheduleWish {
  readonly timing: ScheduleTiming
  readonly to: string
  readonly missed: Missed
  readonly content: Content
}

interface ModelSchedule extends ScheduleWish {
  readonly ticks: Ticks
  readonly paused: boolean
  readonly createdAtMs: number
  /** Ticks up to this time do not fire. */
  readonly fromMs: number
  fired: number
  lastTickMs: number
  /** The first tick that has not fired; Infinity if there is none. */
  nextMs: number
  /** Refusals of the next tick. `retryAtMs` is the time until which it is not tried again. */
  refusal:
    | { readonly code: string; readonly sinceMs: number; readonly tries: number; readonly retryAtMs: number }
    | undefined
}

export class Schedules {
  readonly #bench: Bench
  readonly #model = new Map<string, ModelSchedule>()

  constructor(bench: Bench) {
    this.#bench = bench
  }

  get names(): readonly string[] {
    return [...this.#model.keys()]
  }

  // --- operations ---

  ensure(name: string, wish: ScheduleWish, update: boolean, paused?: boolean): void {
    const { timing, to, missed, content } = wish
    const record = viewBytes(batchOf([content], 0), BATCH_HEADER_BYTES, BATCH_HEADER_BYTES + content.size)
    this.#bench.both(
      `ensure the schedule ${name}`,
      () => {
        const settings = { ...timing, to, missed, record }
        return this.#bench.broker.schedules.ensure({ name, settings, paused, update })
      },
      () => this.#ensure(name, wish, update, paused),
      ({ created }, expected) => same(`created the schedule ${name}`, created, expected),
    )
  }

  #ensure(
    name: string,
    { timing, to, missed, content }: ScheduleWish,
    update: boolean,
    paused?: boolean,
  ): boolean {
    const { nowMs, model } = this.#bench
    const before = this.#model.get(name)
    // An interval without a start begins when the schedule gets this interval.
    const sameStart = before?.timing.everyMs === timing.everyMs ? before?.timing.startMs : undefined
    const startMs = timing.everyMs === undefined ? timing.startMs : (timing.startMs ?? sameStart ?? nowMs)
    const full = { ...timing, startMs }
    const isTimed = before === undefined || shown(full) !== shown(before.timing)
    const isOther =
      isTimed || to !== before.to || missed !== before.missed || shown(content) !== shown(before.content)
    if (before !== undefined && isOther && !update) throw new Refused(['SCHEDULE_CONFLICT'])
    const codes: string[] = []
    if (isTimed && isTooFarPast(timing.atMs, nowMs)) codes.push('AT_IN_THE_PAST')
    if (to !== before?.to && !isTopicAddress(to) && !model.queues.has(to)) codes.push('QUEUE_NOT_FOUND')
    if (codes.length > 0) throw new Refused(codes)
    const isPaused = paused ?? before?.paused ?? false
    const resumes = before?.paused === true && !isPaused
    const fromMs = isTimed ? Math.min(nowMs, (timing.atMs ?? Infinity) - 1) : before.fromMs
    const after = {
      timing: full,
      to,
      missed,
      content,
      ticks: ticksOf(full),
      paused: isPaused,
      createdAtMs: before?.createdAtMs ?? nowMs,
      fromMs: resumes ? nowMs : fromMs,
      fired: before?.fired ?? 0,
      lastTickMs: before?.lastTickMs ?? 0,
    }
    if (before === undefined || isOther || isPaused !== before.paused) this.#set(name, after)
    return before === undefined
  }

  pause(name: string, paused: boolean): void {
    this.#bench.both(
      `${paused ? 'pause' : 'resume'} the schedule ${name}`,
      () => this.#bench.broker.schedules.ensure({ name, settings: undefined, paused, update: false }),
      () => {
        const before = this.#schedule(name)
        if (before.paused === paused) return false
        this.#set(name, { ...before, paused, fromMs: paused ? before.fromMs : this.#bench.nowMs })
        return true
      },
      ({ changed }, expected) => same(`whether the schedule ${name} changed`, changed, expected),
    )
  }

  delete(name: string): void {
    this.#bench.both(
      `delete the schedule ${name}`,
      () => this.#bench.broker.schedules.delete(name),
      () => {
        const { fired } = this.#schedule(name)
        this.#model.delete(name)
        return fired
      },
      ({ fired }, expected) => same(`ticks of ${name} that fired`, fired, expected),
    )
  }

  /** Publishes the message now. This is not a tick. */
  run(name: string): void {
    this.#bench.both(
      `run the schedule ${name}`,
      () => this.#bench.broker.schedules.run(name),
      (answer) => this.#publish(name, this.#schedule(name), this.#bench.nowMs, answer === undefined),
      (answer, expected) => same(`place of a message of ${name}`, answer.offset ?? answer.targets, expected),
    )
  }

  #schedule(name: string): ModelSchedule {
    const schedule = this.#model.get(name)
    if (schedule === undefined) throw new Refused(['SCHEDULE_NOT_FOUND'])
    return schedule
  }

  // The next tick follows from what is durable.
  #set(name: string, schedule: Omit<ModelSchedule, 'nextMs' | 'refusal'>): void {
    const { ticks, fromMs, lastTickMs, paused } = schedule
    const nextMs = paused ? Infinity : tickAfter(ticks, Math.max(fromMs, lastTickMs))
    this.#model.set(name, { ...schedule, nextMs, refusal: undefined })
  }

  // Returns the offset or the number of targets. @throws Refused
  #publish(name: string, { to, content }: ModelSchedule, tickMs: number, isRefused: boolean): number {
    const headers = {
      ...content.headers,
      [SCHEDULE_HEADERS.name]: name,
      [SCHEDULE_HEADERS.tickMs]: String(tickMs),
    }
    const message = {
      ...content,
      headers,
      size: recordBytes(recordOf({ ...content, headers }), content.body.length),
    }
    const { model } = this.#bench
    if (!isTopicAddress(to)) return model.publish(to, [message], isRefused).base
    const topic = readTopicAddress(to)
    return model.publishToTopic(topic.name, [message], topic.drops, [], isRefused)
  }

  // --- ticks ---

  /** Called when the broker has opened, before its first turn: the model starts again too, and observes the ticks. */
  opened(broker: Broker): void {
    for (const [name, schedule] of this.#model) this.#set(name, schedule)
    let isStep = false
    const { schedules, intake, sharedIntake, topics } = broker
    const step = schedules.step.bind(schedules)
    const watchedStep = (): void => {
      isStep = true
      step()
      isStep = false
    }
    Object.defineProperty(schedules, 'step', { value: watchedStep })
    const watch = <Result>(
      batch: Uint8Array,
      at: number,
      call: () => Result,
      isDone: (result: Result) => boolean,
    ): Result => {
      if (!isStep) return call()
      const headers = contentOf(batch, at + BATCH_HEADER_BYTES).headers
      const name = headers[SCHEDULE_HEADERS.name]!
      const tickMs = Number(headers[SCHEDULE_HEADERS.tickMs])
      try {
        const result = call()
        if (isDone(result)) this.#bench.changed(() => this.#fired(name, tickMs, undefined))
        return result
      } catch (error) {
        const { code } = error as { readonly code: string }
        this.#bench.changed(() => this.#fired(name, tickMs, code))
        throw error
      }
    }
    const take = intake.take.bind(intake)
    const watchedTake: typeof take = (queue, batch, arrival, before) =>
      watch(
        batch.bytes,
        batch.at,
        () => take(queue, batch, arrival, before),
        () => true,
      )
    Object.defineProperty(intake, 'take', { value: watchedTake })
    const takeShared = sharedIntake.take.bind(sharedIntake)
    const watchedShared: typeof takeShared = (targets, batch, arrival, before) =>
      watch(
        batch.bytes,
        batch.at,
        () => takeShared(targets, batch, arrival, before),
        () => true,
      )
    Object.defineProperty(sharedIntake, 'take', { value: watchedShared })
    const targetsOf = topics.targetsOf.bind(topics)
    const watchedTargets: typeof targetsOf = (address, batch, flags) =>
      watch(
        batch.bytes,
        batch.at,
        () => targetsOf(address, batch, flags),
        ({ length }) => length === 0,
      )
    Object.defineProperty(topics, 'targetsOf', { value: watchedTargets })
  }

  // The product published the message of a tick, or was refused with `code`.
  #fired(name: string, tickMs: number, code: string | undefined): void {
    const { nowMs } = this.#bench
    const schedule = this.#model.get(name)
    const what = `tick ${tickMs} of ${name} at ${nowMs}`
    if (schedule === undefined) throw new Difference(`${what}, which does not exist`)
    const due = dueTick(schedule.ticks, schedule.missed, schedule.nextMs, nowMs)
    if (due?.tickMs !== tickMs || due.isSkipped)
      throw new Difference(`${what} fired, expected ${JSON.stringify(due)}, next ${schedule.nextMs}`)
    const { refusal } = schedule
    if (refusal !== undefined && nowMs < refusal.retryAtMs) throw new Difference(`${what} was tried early`)
    this.#bench.count(tickMs < nowMs ? 'ticks that fired late' : 'ticks that fired in time')
    try {
      this.#publish(name, schedule, tickMs, code !== undefined)
    } catch (error) {
      if (!(error instanceof Refused)) throw error
      if (code === undefined || !error.codes.includes(code))
        throw new Difference(`${what}: ${code ?? 'accepted'}, expected ${error.message}`)
      this.#refused(schedule, code)
      return
    }
    if (code !== undefined) throw new Difference(`${what} was refused with ${code}`)
    schedule.fired++
    schedule.lastTickMs = tickMs
    schedule.refusal = undefined
    schedule.nextMs = tickAfter(schedule.ticks, tickMs)
  }

  #refused(schedule: ModelSchedule, code: string): void {
    const { nowMs } = this.#bench
    const { tries = 0, sinceMs = nowMs } = schedule.refusal ?? {}
    schedule.refusal = { code, sinceMs, tries: tries + 1, retryAtMs: nowMs + retryMs(tries) }
    this.#bench.count('ticks refused')
  }

  // --- comparisons ---

  compare(): void {
    const { schedules } = this.#bench.broker.schedules.list('', 100)
    const { nowMs, model } = this.#bench
    for (const { name, to, error } of schedules) {
      const schedule = this.#model.get(name)
      if (schedule === undefined) continue
      // The refusal because of a missing queue precedes the publish, which is what this observes.
      const isMissing = !isTopicAddress(to) && !model.queues.has(to)
      if (isMissing && error?.code === ERRORS.QUEUE_NOT_FOUND.number) {
        const { sinceMs, tries } = error
        const known = schedule.refusal
        const isNew = known === undefined || known.tries !== tries || known.sinceMs !== sinceMs
        if (isNew)
          schedule.refusal = {
            code: 'QUEUE_NOT_FOUND',
            sinceMs,
            tries,
            retryAtMs: nowMs + retryMs(tries - 1),
          }
      }
      this.#checkDue(name, schedule)
    }
    same(
      'schedules',
      schedules.map(
        ({
          name,
          cron,
          timeZone,
          everyMs,
          startMs,
          atMs,
          to,
          missed,
          paused,
          createdAtMs,
          fired,
          lastTickMs,
          nextTicksMs,
          error,
        }) => [
          name,
          shown({ cron, timeZone, everyMs, startMs, atMs }),
          [to, missed, paused, createdAtMs, fired, lastTickMs, nextTicksMs[0]],
          error && [error.code, error.sinceMs, error.tries],
        ],
      ),
      [...this.#model]
        .toSorted(([a], [b]) => (a < b ? -1 : 1))
        .map(([name, { timing, to, missed, paused, createdAtMs, fired, lastTickMs, nextMs, refusal }]) => [
          name,
          shown(timing),
          [
            to,
            missed,
            paused,
            createdAtMs,
            fired,
            fired === 0 ? null : lastTickMs,
            nextMs === Infinity ? undefined : nextMs,
          ],
          refusal === undefined
            ? null
            : [ERRORS[refusal.code as ErrorCode].number, refusal.sinceMs, refusal.tries],
        ]),
    )
    this.#bench.count('schedules compared', schedules.length)
  }

  #checkDue(name: string, schedule: ModelSchedule): void {
    const { nowMs } = this.#bench
    const { ticks, missed, nextMs, refusal } = schedule
    const due = dueTick(ticks, missed, nextMs, nowMs)
    // A tick that was refused is skipped when it would be tried again.
    if (due === undefined || (refusal !== undefined && nowMs < refusal.retryAtMs)) return
    if (due.isSkipped) {
      schedule.nextMs = tickAfter(ticks, due.tickMs)
      this.#bench.count('ticks skipped')
    } else throw new Difference(`tick ${due.tickMs} of ${name} has not fired at ${nowMs}`)
  }
}

function ticksOf({ cron, everyMs, startMs, atMs }: ScheduleTiming): Ticks {
  if (cron !== undefined) return CRONS.find((one) => one.cron === cron)!.ticks
  return everyMs === undefined ? { startMs: atMs!, everyMs: Infinity } : { startMs: startMs!, everyMs }
}

function shown(value: object): string {
  return JSON.stringify(
    Object.entries(value)
      .filter(([, part]) => part !== undefined)
      .toSorted(([a], [b]) => (a < b ? -1 : 1)),
  )
}
