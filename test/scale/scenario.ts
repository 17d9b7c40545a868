export interface Finding {
  readonly what: string
  readonly value: string
  readonly isMet: boolean
}

/** Loads a broker process through the SDK, measures it, and reports whether each measurement is within its bounds. */
export type Scenario = (messages: number, duePerSecond: number) => Promise<Finding[]>

export const whole = (value: number): string => Math.round(value).toLocaleString('en-US')
export const fixed = (value: number, digits = 1): string => value.toFixed(digits)
