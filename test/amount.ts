/**
 * The amount of work of a test. `pnpm test` does enough to find each planted defect; the long mode (SLUICE_LONG=1, in
 * parts with `pnpm test:long`) does many times that. SLUICE_SEED=n runs one seed and SLUICE_SEEDS=a-b a range;
 * assertions on the sum of all seeds are skipped for a single seed.
 */
export const IS_LONG = process.env['SLUICE_LONG'] !== undefined && process.env['SLUICE_LONG'] !== '0'
export const ONE_SEED =
  process.env['SLUICE_SEED'] === undefined ? undefined : Number(process.env['SLUICE_SEED'])

/** The seeds of SLUICE_SEED or SLUICE_SEEDS; without them `count` seeds from `first`, or `longCount` in the long mode. */
export function seedsFrom(first: number, count: number, longCount: number): number[] {
  if (ONE_SEED !== undefined) return [ONE_SEED]
  const range = process.env['SLUICE_SEEDS']
  const [from, to] = range?.split('-').map(Number) ?? [first, first + (IS_LONG ? longCount : count) - 1]
  if (from === undefined || to === undefined || !(to >= from))
    throw new Error(`SLUICE_SEEDS is ${range}; it must be two numbers, as in 1-100.`)
  return Array.from({ length: to - from + 1 }, (_, i) => from + i)
}

/** Like `seedsFrom` from 1 on, but short runs take these seeds, in which rare events happen. */
export function seedsOf(short: readonly number[], longCount: number): readonly number[] {
  const isShort = !IS_LONG && ONE_SEED === undefined && process.env['SLUICE_SEEDS'] === undefined
  return isShort ? short : seedsFrom(1, short.length, longCount)
}

/**
 * Minimum count of an event in `runs` runs, given that `of` runs have at least `least`. If `runs` is below `of`, the
 * counts vary more, so only half of the proportional count is required. The result is rounded down, to zero for a rare
 * event.
 */
export function leastIn(runs: number, least: number, of: number): number {
  return Math.floor(((runs < of ? 0.5 : 1) * least * runs) / of)
}

/** A number of runs, kills or failures: `usual`, or `long` in the long mode. */
export function runs(usual: number, long: number): number {
  return IS_LONG ? long : usual
}

/** The time limit of a test whose amount of work depends on the mode. */
export const TIMEOUT_MS = IS_LONG ? 12 * 3_600_000 : 300_000
