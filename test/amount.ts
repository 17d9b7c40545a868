/**
 * How much a test does: in `pnpm test` what still finds each planted defect, and many times as much of the same in the
 * long mode (SLUICE_LONG=1; `pnpm test:long` runs it in parts). SLUICE_SEED=n runs one seed, SLUICE_SEEDS=a-b a range
 * of them; what is asserted of all seeds together is not asserted of one.
 */
export const IS_LONG = process.env['SLUICE_LONG'] !== undefined && process.env['SLUICE_LONG'] !== '0'
export const ONE_SEED =
  process.env['SLUICE_SEED'] === undefined ? undefined : Number(process.env['SLUICE_SEED'])

/** The seed that was named, the range that was named, or `count` seeds from `first` on, in the long mode `longCount`. */
export function seedsFrom(first: number, count: number, longCount: number): number[] {
  if (ONE_SEED !== undefined) return [ONE_SEED]
  const range = process.env['SLUICE_SEEDS']
  const [from, to] = range?.split('-').map(Number) ?? [first, first + (IS_LONG ? longCount : count) - 1]
  if (from === undefined || to === undefined || !(to >= from))
    throw new Error(`SLUICE_SEEDS is ${range}; it must be two numbers, as in 1-100.`)
  return Array.from({ length: to - from + 1 }, (_, i) => from + i)
}

/**
 * How often an event must be seen in `runs` runs, where `least` times are sure in `of`. Few runs scatter more, so half of
 * their part is asked of them, and nothing of what is rare.
 */
export function leastIn(runs: number, least: number, of: number): number {
  return Math.floor(((runs < of ? 0.5 : 1) * least * runs) / of)
}

/** How many runs of a property, kills or failures. */
export function runs(usual: number, long: number): number {
  return IS_LONG ? long : usual
}

/** The time limit of a test whose amount depends on the mode. */
export const TIMEOUT_MS = IS_LONG ? 12 * 3_600_000 : 300_000
