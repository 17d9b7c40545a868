/** The ticks of a schedule: a time, or all times `startMs + n * everyMs`. Shares no code with the server. */
export interface Ticks {
  readonly startMs: number
  /** Infinity: `startMs` is the only tick. */
  readonly everyMs: number
}

/** A tick that is later than this is missed, and so is a tick if a later one is due. */
const LATE_MS = 60_000

/** The first tick after `timeMs`; Infinity if there is none. */
export function tickAfter({ startMs, everyMs }: Ticks, timeMs: number): number {
  if (timeMs < startMs) return startMs
  if (everyMs === Infinity) return Infinity
  let tick = startMs + Math.floor((timeMs - startMs) / everyMs) * everyMs
  while (tick <= timeMs) tick += everyMs
  return tick
}

/** The last tick that is not after `timeMs`, which must not be before the first tick. */
export function lastTick({ startMs, everyMs }: Ticks, timeMs: number): number {
  return everyMs === Infinity ? startMs : tickAfter({ startMs, everyMs }, timeMs) - everyMs
}

/** What happens at `nowMs` if `nextMs` is the first tick that has not fired: the tick that fires, or is skipped with all before it. */
export function dueTick(
  ticks: Ticks,
  missed: 'skip' | 'once' | 'all',
  nextMs: number,
  nowMs: number,
): { readonly tickMs: number; readonly isSkipped: boolean } | undefined {
  if (nextMs > nowMs) return undefined
  const tickMs = missed === 'all' ? nextMs : lastTick(ticks, nowMs)
  return { tickMs, isSkipped: missed === 'skip' && nowMs - tickMs > LATE_MS }
}

/** The pause after the refusal of a tick that was refused `tries` times before. */
export function retryMs(tries: number): number {
  return Math.min(60_000, 1_000 * 2 ** tries)
}
