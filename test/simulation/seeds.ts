/**
 * Which seeds a test runs: those of `pnpm test`, many with SLUICE_LONG, or the one that SLUICE_SEED names, to look into
 * it. What is asserted over all seeds together is not asserted of one.
 */
export const ONE_SEED =
  process.env['SLUICE_SEED'] === undefined ? undefined : Number(process.env['SLUICE_SEED'])
export const IS_LONG = process.env['SLUICE_LONG'] !== undefined && process.env['SLUICE_LONG'] !== '0'

/** `count` seeds from `first` on, `longFactor` times as many in the long mode; or the one that was named. */
export function seedsFrom(first: number, count: number, longFactor: number): number[] {
  if (ONE_SEED !== undefined) return [ONE_SEED]
  return Array.from({ length: IS_LONG ? count * longFactor : count }, (_, i) => first + i)
}
